//! RSA keys of a generator whose primes can be found again (ROCA, CVE-2017-15361): their moduli give themselves away.

/// The generator built its primes from powers of this number, modulo a product of small primes.
const GENERATOR: u32 = 65537;

/// The small primes that every size of such keys was built from.
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// Whether the big-endian `modulus` is, modulo each of the small primes, a power of the generator. One in 2^30 others is so
/// by chance.
///
/// Source: Nemec and others, "The Return of Coppersmith's Attack" (2017), section 2.
pub(super) fn is_guessable(modulus: &[u8]) -> bool {
    PRIMES.iter().all(|prime| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let powers = std::iter::successors(Some(1), |power| Some(power * (GENERATOR % prime) % prime));
        // The powers repeat after fewer steps than the prime has residues.
        powers.take(*prime as usize).any(|power| power == rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/conformance` has a real key of that generator.
    #[test]
    fn a_modulus_of_powers_alone_is_known_and_others_are_not() {
        // 65537^7 and 65537^8 are powers modulo any prime; 2 is none modulo 11, where the powers are 1 and -1.
        let power = |exponent: u32| u128::from(GENERATOR).pow(exponent).to_be_bytes();
        assert!(is_guessable(&power(7)) && is_guessable(&[0, 0, 1]), "powers, whatever zeros lead them");
        assert!(!is_guessable(&[2]) && !is_guessable(&(u128::from(GENERATOR).pow(7) + 2).to_be_bytes()), "others");
    }
}

//! Fair dealing: who gets how much of what is not enough for all.

/// What a caller asked for, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    pub asked: f64,
    pub weight: f64,
}

impl Demand {
    /// The part of it that is let in when each may have `level` for each unit of weight; `None`: everything.
    pub fn part_at(&self, level: Option<f64>) -> f64 {
        match level {
            Some(level) if self.asked > 0.0 => (level * self.weight / self.asked).min(1.0),
            Some(_) | None => 1.0,
        }
    }
}

/// The level at which everybody together gets `budget`, by max-min fairness: whoever asks for less than its part gets what
/// it asks for, and what is left over is the others'. `None` when there is enough for all.
pub(super) fn deal(demands: &[Demand], budget: f64) -> Option<f64> {
    let mut asking: Vec<Demand> = demands.iter().copied().filter(|demand| demand.asked > 0.0).collect();
    asking.sort_by(|one, other| (one.asked / one.weight).total_cmp(&(other.asked / other.weight)));
    let mut weights: f64 = asking.iter().map(|demand| demand.weight).sum();
    let mut left = budget;
    for demand in asking {
        let level = left / weights;
        if demand.asked > level * demand.weight {
            return Some(level);
        }
        left -= demand.asked;
        weights -= demand.weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_for_less_than_its_part_gets_it_all_and_the_rest_is_shared_by_weight() {
        type Row = (&'static [(f64, f64)], f64, &'static [f64], &'static str);
        let table: [Row; 6] = [
            (&[(10.0, 1.0), (20.0, 1.0)], 30.0, &[10.0, 20.0], "enough for all"),
            (&[(100.0, 1.0), (100.0, 1.0)], 100.0, &[50.0, 50.0], "alike"),
            (&[(10.0, 1.0), (1000.0, 1.0)], 100.0, &[10.0, 90.0], "the modest one gets all it asks for"),
            (&[(1000.0, 25.0), (1000.0, 75.0)], 100.0, &[25.0, 75.0], "by weight"),
            (&[(5.0, 1.0), (40.0, 1.0), (900.0, 2.0)], 100.0, &[5.0, 95.0 / 3.0, 190.0 / 3.0], "step by step"),
            (&[(0.0, 1.0), (200.0, 1.0)], 100.0, &[0.0, 100.0], "who asks for nothing takes nothing away"),
        ];
        for (demands, budget, expected, why) in table {
            let demands: Vec<Demand> =
                demands.iter().map(|(asked, weight)| Demand { asked: *asked, weight: *weight }).collect();
            let level = deal(&demands, budget);
            for (demand, expected) in demands.iter().zip(expected) {
                let got = demand.part_at(level) * demand.asked;
                assert!((got - expected).abs() < 1e-6, "{why}: {got} of {expected}");
            }
        }
    }
}

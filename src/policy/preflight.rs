//! Looks at policy text before Cedar's parser does.
//!
//! The parser aborts the whole process on deeply nested text (a stack overflow is no error and no panic), so nothing
//! reaches it that nests past the limit or is longer than it has to be. What passes is parsed on a big stack.

use super::report::{Problem, SourceFile};

/// Tokens of one policy at most.
pub const MAX_POLICY_TOKENS: usize = 4000;

/// Nesting in text that can be a depth of `depth` in the syntax tree: brackets may also be redundant, so this is looser
/// than the limit on the tree, yet far under what the parser survives on its big stack.
const SLACK: usize = 2;

/// Checks nesting and length of everything between two `;` of a file of policies or schema.
///
/// # Errors
/// The first place where a limit is passed.
pub fn check(file: &SourceFile, depth_limit: usize) -> Result<(), Problem> {
    let mut depth = 0usize;
    let mut tokens = 0usize;
    let mut conditionals = 0usize;
    let mut chars = file.text.char_indices().peekable();
    while let Some((offset, c)) = chars.next() {
        match c {
            '/' if chars.peek().is_some_and(|(_, next)| *next == '/') => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            '"' => {
                tokens += 1;
                while let Some((_, c)) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '(' | '[' | '{' | '<' => {
                tokens += 1;
                // `<` also compares; a comparison never closes, so it is only counted as a token.
                if c != '<' || file.name.ends_with("schema") {
                    depth += 1;
                }
                if depth > depth_limit * SLACK {
                    let message = format!("nests more than {} brackets deep", depth_limit * SLACK);
                    return Err(
                        Problem::at(file, offset, 1, &message).help("split the policy, or raise `limits.policy_depth`")
                    );
                }
            }
            ')' | ']' | '}' | '>' => {
                tokens += 1;
                if c != '>' || file.name.ends_with("schema") {
                    depth = depth.saturating_sub(1);
                }
            }
            ';' if depth == 0 => {
                tokens = 0;
                conditionals = 0;
            }
            c if c.is_alphanumeric() || c == '_' => {
                tokens += 1;
                let start = offset;
                let mut end = offset + c.len_utf8();
                while let Some((at, c)) = chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    end = at + c.len_utf8();
                }
                if file.text.get(start..end) == Some("if") {
                    conditionals += 1;
                }
                if conditionals > depth_limit * SLACK {
                    let message = format!("chains more than {} `if`s", depth_limit * SLACK);
                    return Err(Problem::at(file, start, end - start, &message).help("split the policy"));
                }
            }
            c if c.is_whitespace() => {}
            _ => tokens += 1,
        }
        if tokens > MAX_POLICY_TOKENS && !file.name.ends_with("schema") {
            let message = format!("a policy has more than {MAX_POLICY_TOKENS} tokens");
            return Err(
                Problem::at(file, offset, c.len_utf8(), &message).help("split the policy, or move data into entities")
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: String) -> bool {
        check(&SourceFile { name: "p.cedar".into(), text }, 64).is_ok()
    }

    #[test]
    fn hostile_text_never_reaches_the_parser() {
        let policy = |body: String| format!("permit (principal, action, resource) when {{ {body} }};");
        let table = [
            (policy("true".into()), true, "plain"),
            (policy(format!("{}true{}", "(".repeat(127), ")".repeat(127))), true, "at the limit, with the braces"),
            (policy(format!("{}true{}", "(".repeat(128), ")".repeat(128))), false, "one past it"),
            (policy(format!("{}true{}", "(".repeat(100_000), ")".repeat(100_000))), false, "aborts the parser"),
            (policy(format!("{}1", "[".repeat(100_000))), false, "never closes"),
            (policy(format!("\"{}\" == \"x\"", "(".repeat(1000))), true, "brackets in a string are text"),
            (policy(format!("\"\\\"{}\" == \"x\"", "(".repeat(1000))), true, "and after an escaped quote"),
            (format!("// {}\npermit (principal, action, resource);", "(".repeat(1000)), true, "and in a comment"),
            (policy(format!("{}true", "true && ".repeat(3000))), false, "too many tokens"),
            (
                policy(format!("{}true", "if true then true else ".repeat(1000))),
                false,
                "a chain nests without brackets",
            ),
            ("permit (principal, action, resource);\n".repeat(5000), true, "many small policies are fine"),
            (policy("1 < 2 && 2 > 1".to_owned()), true, "comparisons are no brackets"),
        ];
        for (text, expected, why) in table {
            assert_eq!(judge(text), expected, "{why}");
        }
    }
}

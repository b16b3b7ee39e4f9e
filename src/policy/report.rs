//! What is wrong with a bundle, told as a compiler would: file, line, column, what, and the mend.

use std::fmt;

use miette::Diagnostic;

/// A file of a bundle.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Relative to the bundle's folder.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// One thing that is wrong, or looks wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the bundle's folder.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// From 1, in characters; 0: the line as a whole.
    pub column: usize,
    /// Bytes into the file, for a snippet.
    pub offset: usize,
    /// How many bytes it concerns.
    pub length: usize,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// The file's text, for a snippet.
    pub source: Option<String>,
}

impl Problem {
    /// About something that is not in a file.
    #[must_use]
    pub fn bare(file: &str, message: &str) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            offset: 0,
            length: 0,
            message: message.to_owned(),
            help: None,
            source: None,
        }
    }

    /// About a file as a whole.
    #[must_use]
    pub fn whole(file: &SourceFile, message: &str) -> Self {
        Self::bare(&file.name, message)
    }

    /// About a stretch of a file.
    #[must_use]
    pub fn at(file: &SourceFile, offset: usize, length: usize, message: &str) -> Self {
        let before = file.text.get(..offset).unwrap_or(&file.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        Self {
            line: before.matches('\n').count() + 1,
            column,
            offset,
            length,
            source: Some(file.text.clone()),
            ..Self::bare(&file.name, message)
        }
    }

    /// About the first place where `text` stands in a file; the file as a whole when it does not.
    #[must_use]
    pub fn at_text(file: &SourceFile, text: &str, message: &str) -> Self {
        let message = format!("`{text}` {message}");
        match file.text.find(text) {
            Some(offset) => Self::at(file, offset, text.len(), &message),
            None => Self::whole(file, &message),
        }
    }

    /// From a diagnostic of Cedar's, whose labels are offsets into `file`.
    #[must_use]
    pub fn from_diagnostic(file: &SourceFile, diagnostic: &(dyn Diagnostic + 'static)) -> Self {
        let mut message = diagnostic.to_string();
        let mut help = diagnostic.help().map(|help| help.to_string());
        let mut label = diagnostic.labels().and_then(|mut labels| labels.next());
        // Parse errors come in bunches; the first is where it went wrong.
        if label.is_none()
            && let Some(first) = diagnostic.related().and_then(|mut related| related.next())
        {
            message = first.to_string();
            label = first.labels().and_then(|mut labels| labels.next());
            help = help.or_else(|| first.help().map(|help| help.to_string()));
        }
        if let Some(text) = label.as_ref().and_then(|label| label.label()).filter(|text| !message.contains(*text)) {
            message = format!("{message}: {text}");
        }
        let mut problem = match label {
            Some(label) => Self::at(file, label.offset(), label.len(), &message),
            None => Self::whole(file, &message),
        };
        problem.help = help;
        problem
    }

    /// The same, with the mend.
    #[must_use]
    pub fn help(mut self, help: &str) -> Self {
        self.help = Some(help.to_owned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// Why a bundle was not taken: everything that is wrong with it.
#[derive(Debug, Clone, thiserror::Error)]
pub struct BundleReport {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for BundleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl From<Vec<Problem>> for BundleReport {
    fn from(problems: Vec<Problem>) -> Self {
        Self { problems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_where_in_lines_and_characters() {
        let file = SourceFile { name: "a.cedar".into(), text: "äö\nxx yy\n".into() };
        let problem = Problem::at_text(&file, "yy", "is unknown").help("say `zz`");
        assert_eq!(problem.to_string(), "a.cedar:2:4: `yy` is unknown; say `zz`");
        assert_eq!(Problem::at(&file, 2, 2, "odd").to_string(), "a.cedar:1:2: odd", "columns count characters");
    }
}

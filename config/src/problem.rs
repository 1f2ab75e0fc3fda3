//! What is wrong with a document, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in a document: line and column from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Line, from 1; zero is the document as a whole.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// A file that a document was read from.
pub type File = Arc<Path>;

/// One thing to mend: where, what was found, what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: File,
    /// The place in it.
    pub place: Place,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.place.line > 0 {
            write!(f, ":{}:{}", self.place.line, self.place.column)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of files and lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    /// The problems.
    pub list: Vec<Problem>,
    /// Every file and folder that was looked at: a change in one may mend it.
    pub files: Vec<PathBuf>,
}

impl Problems {
    /// Adds a problem at `place` of `file`.
    pub fn push(&mut self, file: &File, place: Place, message: impl Into<String>) {
        self.list.push(Problem { file: Arc::clone(file), place, message: message.into() });
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn sort(&mut self) {
        self.list.sort();
        self.list.dedup();
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.list.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

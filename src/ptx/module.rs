//! A loaded PTX text.

use super::error::{Error, Kind, Result};
use super::inst::Kernel;
use super::lower::lower;
use super::parse::parse;

/// The kernels of one PTX text, ready to run.
#[derive(Clone, Debug)]
pub struct Module {
    version: String,
    target: String,
    kernels: Vec<Kernel>,
}

impl Module {
    /// Parses and decodes a text. Whatever the emulator does not execute is an error here, with its line.
    pub fn parse(text: &str) -> Result<Self> {
        let tree = parse(text)?;
        let mut kernels = Vec::with_capacity(tree.kernels.len());
        for source in &tree.kernels {
            kernels.push(lower(&tree, source).map_err(|e| e.in_kernel(source.name))?);
        }
        Ok(Self { version: tree.version.to_owned(), target: tree.target.to_owned(), kernels })
    }

    /// `.version`
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `.target`
    pub fn target(&self) -> &str {
        &self.target
    }

    /// All kernels in the order of the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels.iter().find(|k| k.name() == name).ok_or_else(|| {
            let known: Vec<&str> = self.kernels.iter().map(Kernel::name).collect();
            Error::at(Kind::Launch, 0, format!("no kernel `{name}` in this text, which has: {}", known.join(", ")))
        })
    }
}

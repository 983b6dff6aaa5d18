//! Text to tokens, on the host: files to rows, rows to typed examples, examples to tokens, and the account of what
//! became of every row and token. And the embedded task, which makes its own text.

#![forbid(unsafe_code)]

pub(crate) mod check;
pub(crate) mod clock;
mod containment;
pub mod demo;
pub mod encode;
pub mod formats;
mod jinja_functions;
mod jinja_source;
pub(crate) mod job;
pub mod ledger;
pub(crate) mod lint;
mod model_files;
pub mod packing;
mod parquet;
mod parquet_limits;
mod parquet_shapes;
pub(crate) mod preview;
pub mod records;
pub mod template;
#[cfg(test)]
mod test_model;
mod thrift;
pub mod tokenizer;

//! From a prompt to token ids: byte-pair encoding, and weights on parts of a prompt.

pub mod tokenizer;
pub mod weighting;

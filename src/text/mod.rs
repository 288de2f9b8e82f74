//! From a prompt to token ids: byte-pair encoding, and weights on parts of a prompt. Of ids, n-grams.

pub mod byte_level;
pub mod chat;
pub mod ngram;
pub mod tokenizer;
pub mod weighting;

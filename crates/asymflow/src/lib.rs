#![doc = include_str!("../README.md")]

pub mod accounting;
pub mod checkpoint;
pub mod job;
pub mod link;
pub mod local;
pub mod modes;
pub mod plan;
pub mod release;
pub mod run;
pub mod serve;
pub mod speedup;
pub mod split;
pub mod study;
pub mod timing;
pub mod train;
pub mod trusted;

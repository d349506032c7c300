//! x
#![allow(dead_code)]
mod compare;
pub mod conv;
mod gemm;
mod hash;
pub mod prg;
pub mod ring;
#[cfg(test)]
mod speed;

//! Benchmarks of asymflow: one file under `benches/` for each claim.

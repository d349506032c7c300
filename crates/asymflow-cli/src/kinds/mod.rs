//! The kinds of experiments that the command has by itself.

use std::sync::Arc;

use crate::kind::AnyKind;

mod activation_budget;
mod audit;
mod memory_study;
mod rank_dct_study;
mod rank_study;
mod serve;
mod shares;
mod speedup;
mod study;
pub mod train;

/// All of them.
pub fn all() -> Vec<Arc<dyn AnyKind>> {
    vec![
        Arc::new(train::Train),
        Arc::new(speedup::Speedup),
        Arc::new(rank_study::RankStudy),
        Arc::new(rank_dct_study::RankDctStudy),
        Arc::new(serve::Serve),
        Arc::new(memory_study::MemoryStudy),
        Arc::new(shares::Shares),
        Arc::new(activation_budget::ActivationBudget),
        Arc::new(audit::Audit),
    ]
}

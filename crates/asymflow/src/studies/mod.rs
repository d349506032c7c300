//! What can be measured of a network in the trusted part, beside training it: each study is one value, with its settings, the
//! memory that it takes, how it is run and what it reports.

mod audit;
#[cfg(feature = "shares")]
pub mod budget;
mod memory;
mod rank;
mod speedup;
mod split;
mod study;

use crate::job::StudyRef;

pub use asymflow_audit::epsilon::EpsilonRow;
pub use audit::{Audit, AuditReport, Picture, epsilon_rows};
pub use memory::{MemoryReport, MemoryStudy};
pub use rank::{LayerStudy, RankStudy, RankStudyReport, ResidualEnergy};
pub use speedup::{Limit, MachineRates, NamedMode, Speedup, SpeedupReport, Variant};
pub use split::{SplitEnergy, SplitStudy, SplitStudyReport};
pub(crate) use study::{AnyStudy, opened};
pub use study::{Bench, OpenBackend, Study, StudyError, Trained};

type Read = fn(&[u8]) -> Result<Box<dyn AnyStudy>, StudyError>;

const ALL: [(&str, Read); 5] = [
    (Speedup::NAME, study::read::<Speedup>),
    (RankStudy::NAME, study::read::<RankStudy>),
    (SplitStudy::NAME, study::read::<SplitStudy>),
    (MemoryStudy::NAME, study::read::<MemoryStudy>),
    (Audit::NAME, study::read::<Audit>),
];

/// The study that travelled as `study`.
pub(crate) fn decode(study: &StudyRef) -> Result<Box<dyn AnyStudy>, StudyError> {
    let known = || ALL.iter().map(|(name, _)| *name).collect();
    let read = ALL.iter().find(|(name, _)| *name == study.name).map(|(_, read)| read);
    read.ok_or_else(|| StudyError::Unknown { name: study.name.clone(), known: known() })?(&study.settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_arrives_as_it_was_sent_and_others_are_refused() {
        let sent = Speedup { batch: 3, repeats: 1, variants: vec![], train: false, seed: 7 };
        let crate::job::Task::Study(mut study) = sent.task().unwrap() else { panic!("no study") };
        assert_eq!(postcard::from_bytes::<Speedup>(&study.settings).unwrap(), sent);
        assert!(decode(&study).is_ok());
        study.settings.pop();
        assert!(matches!(decode(&study), Err(StudyError::Malformed(_))));
        study.name = "speeddown".to_owned();
        let refused = decode(&study).err().unwrap().to_string();
        assert!(refused.contains("speeddown") && refused.contains(RankStudy::NAME), "{refused}");
    }
}

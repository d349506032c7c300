//! Plans by measurement.

use asymflow::plan::costs::{Measured, PassSeconds};
use asymflow::plan::{AUTO, Placement, Plan, PlanError, SplitSpec};
use asymflow_engine::program::Program;
use asymflow_linalg::decompose::NAMES;
use asymflow_residual::backend::Pass;

fn spec(decomposition: &str) -> SplitSpec {
    SplitSpec { decomposition: decomposition.to_owned(), rank: AUTO.to_owned(), split_first: false }
}

#[test]
fn a_measured_plan_splits_only_what_was_measured_to_pay() {
    let program = Program::new(&asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap()).unwrap();
    for (decomposition, pass) in NAMES.into_iter().flat_map(|name| [(name, Pass::Training), (name, Pass::Inference)]) {
        let plan = || Plan::asymml(&program, &spec(decomposition), 2, pass).unwrap();
        let [first, others @ ..] = &plan().convs[..] else { panic!("no convolution") };
        assert_eq!(first.measured, None, "the first convolution is trusted");
        for conv in others {
            let Measured { placement, whole, placed } = conv.measured.unwrap();
            assert_eq!(placement, conv.placement, "{decomposition}, {}", conv.layer);
            assert!(placed.inference > 0.0 && placed.step > 0.0, "{placed:?}");
            match placement {
                Placement::Trusted => assert_eq!(placed, whole),
                Placement::Split { .. } => {
                    assert!(placed.inference < whole.inference, "{placed:?}, {whole:?}");
                    assert!(pass == Pass::Inference || placed.step < whole.step, "{placed:?}, {whole:?}");
                }
            }
        }
        let [whole, placed] = plan().measured_seconds();
        let [whole, placed] = [whole, placed].map(|PassSeconds { inference, step }| match pass {
            Pass::Inference => inference,
            Pass::Training => step,
        });
        assert!(placed <= whole, "{decomposition}: {placed} s are more than {whole} s");
        // Whoever plans in this process plans the same.
        assert_eq!(plan(), plan());
    }
    let refused = Plan::asymml(&program, &spec("of-my-own"), 2, Pass::Training);
    assert!(matches!(refused, Err(PlanError::Auto { .. })), "{refused:?}");
}

//! Plans by measurement.

use asymflow::plan::costs::{Measured, PassSeconds};
use asymflow::plan::{AUTO, Placement, Plan, PlanError, SplitSpec};
use asymflow_engine::program::Program;
use asymflow_linalg::decompose::NAMES;

fn spec(decomposition: &str) -> SplitSpec {
    SplitSpec { decomposition: decomposition.to_owned(), rank: AUTO.to_owned(), split_first: false }
}

#[test]
fn a_measured_plan_splits_only_what_was_measured_to_pay() {
    let program = Program::new(&asymflow_zoo::by_name("resnet8-cifar", 10, None).unwrap()).unwrap();
    for decomposition in NAMES {
        let plan = Plan::asymml(&program, &spec(decomposition), 2).unwrap();
        assert_eq!(plan.convs[0].measured, None, "the first convolution is trusted");
        for conv in &plan.convs[1..] {
            let Measured { placement, whole, placed } = conv.measured.unwrap();
            assert_eq!(placement, conv.placement, "{decomposition}, {}", conv.layer);
            assert!(placed.inference > 0.0 && placed.step > placed.inference, "{placed:?}");
            match placement {
                Placement::Trusted => assert_eq!(placed, whole),
                Placement::Split { .. } => {
                    assert!(placed.inference < whole.inference && placed.step < whole.step, "{placed:?}, {whole:?}");
                }
            }
        }
        let [PassSeconds { step: whole, .. }, PassSeconds { step: placed, .. }] = plan.measured_seconds();
        assert!(placed <= whole, "{decomposition}: {placed} s are more than {whole} s");
        // Whoever plans in this process plans the same.
        assert_eq!(Plan::asymml(&program, &spec(decomposition), 2).unwrap(), plan);
    }
    let refused = Plan::asymml(&program, &spec("of-my-own"), 2);
    assert!(matches!(refused, Err(PlanError::Auto { .. })), "{refused:?}");
}

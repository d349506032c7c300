//! Workers that compute nothing take the time that they are told to.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers as well")]

use asymflow_privacy::{
    Door, Private, Released,
    accountants::Relation,
    door::{Gate, Source},
    mechanisms::InsecureNone,
    payload::{Payload, Precision},
    records::{Flow, RecordAccountant},
};
use asymflow_residual::{
    ResidualBackend,
    backend::{Batch, ConvUnit, Pass, ResidualModel, Unit, UnitId, Wanted},
    modelled::ModelledBackend,
};
use asymflow_zoo::network::Shape;
use rand::SeedableRng;

fn released(values: Vec<f32>) -> Released<Payload> {
    let mut door = Door::new(RecordAccountant::new(1), rand::rngs::StdRng::seed_from_u64(1));
    let gate = Gate::new(Box::new(InsecureNone), None, Relation::Remove).unwrap();
    let source = Source { layer: "unit", flow: Flow::Residual };
    door.release(&gate, source, &[0], Private::new(values)).unwrap().encode(Precision::F32)
}

/// Rates at which each part of the time is told from the others.
#[test]
fn a_card_takes_the_time_of_its_latency_copies_and_operations() {
    let conv = ConvUnit { input: Shape::new(4, 8, 8), out_channels: 2, kernel: 3, stride: 1, padding: 1 };
    let model = ResidualModel { units: vec![Unit::Conv(conv)] };
    let seconds = |card: ModelledBackend| {
        let mut session = card.open(&model).unwrap();
        let ticket = session.submit(UnitId(0), released(vec![1.0; 3 * 256]), Pass::Training).unwrap();
        assert_eq!(session.collect(ticket).unwrap(), Batch::Outputs(vec![0.0; 3 * 128]));
        let wanted = Wanted { input: true, weights: true };
        let ticket = session.submit_gradient(UnitId(0), released(vec![1.0; 3 * 128]), wanted).unwrap();
        let zeros = Batch::Gradients { input: vec![0.0; 3 * 256], weights: vec![0.0; 72] };
        assert_eq!(session.collect(ticket).unwrap(), zeros);
        session.stats().busy_seconds
    };
    // Three samples of 2·64·4·2·9 operations, forward and twice back; 2·4·(768 + 384) bytes and the weights'.
    let (operations, bytes) = (3.0 * 3.0 * 2.0 * 4608.0, 2.0 * 4.0 * 1152.0 + 4.0 * 72.0);
    let slow = ModelledBackend { flops: operations / 0.02, bytes_per_second: bytes / 0.03, latency_seconds: 0.005 };
    let took = seconds(slow);
    assert!((0.06..0.12).contains(&took), "{took} s in place of 0.06");
    assert!(seconds(ModelledBackend::NULL) < 0.06);
}

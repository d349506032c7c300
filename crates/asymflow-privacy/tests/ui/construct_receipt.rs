use asymflow_privacy::{Loss, Receipt, Relation, Sensitivity};

fn main() {
    let _forged = Receipt {
        mechanism: "gaussian",
        loss: Loss::Zcdp { rho: 0.0 },
        sensitivity: Sensitivity::of_clipped(1.0, Relation::Remove),
    };
}

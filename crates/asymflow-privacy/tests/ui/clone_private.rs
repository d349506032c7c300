use asymflow_privacy::Private;

fn main() {
    let private = Private::new(vec![1.0_f32]);
    let _copy = private.clone();
}

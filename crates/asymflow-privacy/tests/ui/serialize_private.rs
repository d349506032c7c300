use asymflow_privacy::Private;

fn send<T: serde::Serialize>(_: &T) {}

fn main() {
    send(&Private::new(vec![1.0_f32]));
}

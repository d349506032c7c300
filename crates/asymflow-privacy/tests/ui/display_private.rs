use asymflow_privacy::Private;

fn main() {
    println!("{}", Private::new(vec![1.0_f32]));
}

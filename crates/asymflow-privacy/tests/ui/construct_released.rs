use asymflow_privacy::Released;

fn main() {
    let _forged = Released { value: vec![1.0_f32] };
}

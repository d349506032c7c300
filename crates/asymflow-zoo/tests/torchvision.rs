//! The ImageNet forms against torchvision's state dicts: names, shapes and order of all tensors.

use asymflow_zoo::by_name;

#[test]
fn tensors_are_those_of_torchvision() {
    let golden = include_str!("golden/state_dicts.txt");
    let mut models = 0;
    for block in golden.split("model ").filter(|block| !block.is_empty()) {
        let mut lines = block.lines();
        let name = lines.next().unwrap();
        let network = by_name(name, 1000, None).unwrap();
        let shape = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let ours: Vec<String> =
            network.parameters().iter().map(|p| format!("{} {}", p.name, shape(&p.shape))).collect();
        assert_eq!(ours, lines.collect::<Vec<_>>(), "{name}");
        models += 1;
    }
    assert_eq!(models, 5);
}

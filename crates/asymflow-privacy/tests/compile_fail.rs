//! What the type system forbids: each program in `ui/` must fail to compile, for the reason beside it.

#[test]
fn the_boundary_cannot_be_crossed_by_accident() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

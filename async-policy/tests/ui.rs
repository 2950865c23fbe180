//! What the compiler says to a mistake.

#[test]
fn an_error_that_cannot_carry_a_refusal() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

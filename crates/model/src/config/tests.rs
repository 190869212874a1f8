use super::*;

#[test]
fn every_architecture_has_its_row() {
    for row in ARCHITECTURES {
        assert_eq!(row.architecture.row().hf_name, row.hf_name);
    }
}

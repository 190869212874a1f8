use super::*;
use neap_kernels::format::WeightFormat;

fn sample() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").unwrap();
    writer.metadata("n", 7u32).unwrap();
    writer
        .tensor("a", &[2, 3], WeightFormat::F32)
        .unwrap()
        .tensor("b", &[2, 32], WeightFormat::Q8_0)
        .unwrap();
    let mut out = writer.begin(Vec::new()).unwrap();
    out.write_tensor(&[1; 24]).unwrap();
    out.write_tensor(&[2; 68]).unwrap();
    out.finish().unwrap()
}

#[test]
fn reads_what_the_writer_wrote() {
    let file = GgufFile::from_vec("sample", sample()).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.metadata("n"), Some(&Value::U32(7)));
    assert_eq!(file.metadata("m"), None);
    let b = file.tensor("b").unwrap();
    assert_eq!((b.rows(), b.cols(), b.len()), (2, 32, 64));
    assert_eq!(file.tensor_data(b), [2; 68]);
    assert_eq!(file.tensor_data(file.tensor("a").unwrap()), [1; 24]);
}

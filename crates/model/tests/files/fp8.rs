//! FP8 weights with their scales.

use neap_kernels::format::WeightFormat;
use neap_model::safetensors::HfFolder;
use neap_model::source::{LayerTensor, ModelFileError, ModelSource, TensorName};
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::tiny::Tiny;

const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// A tiny folder whose up projection in layer 0, [64, 32], is FP8 with these scales.
fn open(
    dtype: Dtype,
    values: &[u8],
    scales: &str,
    shape: Vec<usize>,
    numbers: &[f32],
) -> Result<ModelSource, ModelFileError> {
    let tiny = Tiny::default();
    let tensors = tiny.hf_tensors();
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let mut views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .filter(|tensor| tensor.0 != UP)
        .map(|(name, shape, _, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        })
        .collect();
    let up = TensorView::new(dtype, vec![64, 32], values).unwrap();
    views.push((UP.to_owned(), up));
    if !shape.is_empty() {
        let name = UP.replace("weight", scales);
        views.push((name, TensorView::new(Dtype::F32, shape, &numbers).unwrap()));
    }
    let bytes = serialize(views, None).unwrap();
    let mut config = tiny.config_json();
    config["quantization_config"] = serde_json::json!({ "quant_method": "fp8" });
    let folder = HfFolder::from_vecs("folder", config.to_string().into_bytes(), bytes)?;
    ModelSource::from_folder(folder)
}

fn up(source: &ModelSource) -> Vec<f32> {
    let tensor = source
        .tensor(TensorName::Layer(0, LayerTensor::FfnUp))
        .unwrap();
    assert_eq!(tensor.format, WeightFormat::BF16);
    assert!(!tensor.is_direct());
    let mut bytes = vec![0; tensor.encoded_bytes()];
    tensor.read(&mut bytes).unwrap();
    let mut values = vec![0.0; tensor.len()];
    tensor.format.dequantize(&bytes, &mut values).unwrap();
    values
}

#[test]
fn values_are_multiplied_by_their_scales() {
    // 0x38 is 1 and 0x30 is 0.5 in E4M3.
    let values: Vec<u8> = (0..64 * 32)
        .map(|i| if i % 2 == 0 { 0x38 } else { 0xB0 })
        .collect();
    let plain = open(Dtype::F8_E4M3, &values, "", Vec::new(), &[]).unwrap();
    assert_eq!(up(&plain)[..4], [1.0, -0.5, 1.0, -0.5]);
    let whole = open(Dtype::F8_E4M3, &values, "weight_scale", vec![1], &[4.0]).unwrap();
    assert_eq!(up(&whole)[..2], [4.0, -2.0]);
    // Blocks of 128 by 128: one here.
    let block = open(
        Dtype::F8_E4M3,
        &values,
        "weight_scale_inv",
        vec![1, 1],
        &[0.25],
    )
    .unwrap();
    assert_eq!(up(&block)[..2], [0.25, -0.125]);
    let rows: Vec<f32> = (1..=64).map(|row| row as f32).collect();
    let each = open(Dtype::F8_E4M3, &values, "weight_scale", vec![64, 1], &rows).unwrap();
    let read = up(&each);
    assert!((0..64).all(|row| read[row * 32] == (row + 1) as f32));
    // 0x3C is 1 in E5M2.
    let wide = open(
        Dtype::F8_E5M2,
        &[0x3C; 64 * 32],
        "weight_scale",
        vec![1],
        &[3.0],
    )
    .unwrap();
    assert_eq!(up(&wide), [3.0; 64 * 32]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let values = [0x38; 64 * 32];
    let error = open(Dtype::F8_E4M3, &values, "weight_scale", vec![3], &[1.0; 3]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("up_proj.weight_scale") && error.contains("[3]"),
        "{error}"
    );
    let mut poisoned = values;
    poisoned[33] = 0x7F;
    let source = open(Dtype::F8_E4M3, &poisoned, "", Vec::new(), &[]).unwrap();
    let tensor = source
        .tensor(TensorName::Layer(0, LayerTensor::FfnUp))
        .unwrap();
    let error = tensor
        .read(&mut vec![0; tensor.encoded_bytes()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("row 1, column 1"), "{error}");
}

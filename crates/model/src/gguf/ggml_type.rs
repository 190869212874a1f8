//! Tensor type ids of GGUF.

use neap_kernels::format::WeightFormat;

/// Names of the types that are not supported, for messages.
const OTHER_TYPES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// The format behind a type id, or why it is refused.
pub(super) fn format(id: u32) -> Result<WeightFormat, String> {
    if let Some(format) = WeightFormat::from_ggml_type(id) {
        return Ok(format);
    }
    Err(match OTHER_TYPES.iter().find(|(known, _)| *known == id) {
        Some((_, name)) => format!("{name} (type {id}) is not supported"),
        None => format!("type {id} is not known"),
    })
}

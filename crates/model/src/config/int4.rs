//! How a folder says that its matrices are packed in 4 bits.

use serde::Serialize;
use serde_json::Value as Json;

/// Matrices whose codes are packed in words of 32 bits, with a scale and a zero for each group of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Int4Config {
    /// How they lie.
    pub layout: Int4Layout,
    /// Inputs of a group; all of a row if there is none.
    pub group_size: Option<usize>,
}

/// The layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Int4Layout {
    /// GPTQ (Frantar et al. 2022, arXiv:2210.17323) as AutoGPTQ stores it: eight inputs in a word, zeros less 1.
    Gptq,
    /// The same with zeros as they are: "gptq_v2".
    GptqV2,
    /// AWQ (Lin et al. 2023, arXiv:2306.00978) as AutoAWQ's "gemm" stores it: eight outputs in a word.
    Awq,
}

impl Int4Config {
    /// Reads `quantization_config`, or what stands in `quantize_config.json`. FP8 is none of this kind.
    ///
    /// # Errors
    /// Why such weights are not read.
    pub(super) fn read(json: &Json) -> Result<Option<Self>, String> {
        let method = match json["quant_method"].as_str() {
            Some(method) => method,
            // Older files leave it out.
            None if json.get("w_bit").is_some() => "awq",
            None if json.get("bits").is_some() => "gptq",
            None => "of an unnamed method",
        };
        let layout = match method {
            "fp8" | "fbgemm_fp8" => return Ok(None),
            "gptq" => gptq(json)?,
            "awq" => awq(json)?,
            _ => {
                return Err(format!(
                    "quantized weights ({method}) are not supported (fp8 is, and gptq and awq in 4 bits)"
                ));
            }
        };
        match first(json, ["bits", "w_bit"]).and_then(Json::as_u64) {
            Some(4) => {}
            bits => {
                let bits = bits.map_or("an unnamed number of".to_owned(), |bits| bits.to_string());
                return Err(format!(
                    "{method} in {bits} bits is not supported (4 bits are)"
                ));
            }
        }
        let group_size = match first(json, ["group_size", "q_group_size"]).and_then(Json::as_i64) {
            None | Some(-1) => None,
            Some(size) if size > 0 => Some(size as usize),
            Some(size) => return Err(format!("a group_size of {size} is none")),
        };
        Ok(Some(Self { layout, group_size }))
    }
}

fn first<'a>(json: &'a Json, names: [&str; 2]) -> Option<&'a Json> {
    names.iter().find_map(|name| json.get(name))
}

fn gptq(json: &Json) -> Result<Int4Layout, String> {
    if json["dynamic"]
        .as_object()
        .is_some_and(|own| !own.is_empty())
    {
        return Err("gptq with settings for single matrices (dynamic) is not supported".to_owned());
    }
    match json["checkpoint_format"].as_str() {
        None | Some("gptq") => Ok(Int4Layout::Gptq),
        Some("gptq_v2") => Ok(Int4Layout::GptqV2),
        Some(other) => Err(format!(
            "gptq in the layout '{other}' is not supported (gptq and gptq_v2 are)"
        )),
    }
}

fn awq(json: &Json) -> Result<Int4Layout, String> {
    if json["zero_point"] == Json::Bool(false) {
        return Err("awq without zero points is not supported".to_owned());
    }
    match json["version"].as_str().map(str::to_lowercase).as_deref() {
        None | Some("gemm") => Ok(Int4Layout::Awq),
        Some(other) => Err(format!(
            "awq in the layout '{other}' is not supported (gemm is)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_bits_and_layouts_are_refused_by_name() {
        let read = |json: Json| Int4Config::read(&json);
        let old = read(json!({"bits": 4, "group_size": -1, "desc_act": true})).unwrap();
        let expected = Int4Config {
            layout: Int4Layout::Gptq,
            group_size: None,
        };
        assert_eq!(old, Some(expected));
        let awq = read(
            json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"}),
        );
        assert_eq!(awq.unwrap().unwrap().group_size, Some(128));
        assert_eq!(read(json!({"quant_method": "fp8"})), Ok(None));
        for (config, named) in [
            (
                json!({"quant_method": "gptq", "bits": 3, "group_size": 128}),
                "3 bits",
            ),
            (
                json!({"quant_method": "gptq", "bits": 8, "group_size": 128}),
                "8 bits",
            ),
            (json!({"quant_method": "gptq"}), "an unnamed number"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 0}),
                "group_size of 0",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
                "'marlin'",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}),
                "dynamic",
            ),
            (
                json!({"quant_method": "awq", "bits": 4, "version": "gemv"}),
                "'gemv'",
            ),
            (
                json!({"quant_method": "awq", "bits": 4, "zero_point": false}),
                "zero points",
            ),
            (json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
        ] {
            let why = read(config).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}

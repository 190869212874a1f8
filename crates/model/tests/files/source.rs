//! Models as the decoder sees them.

use neap_kernels::format::WeightFormat;
use neap_model::config::Architecture;
use neap_model::gguf::{GgufFile, ModelFileError};
use neap_model::source::{LayerTensor, ModelSource, TensorName};

use crate::tiny::{Tensor, Tiny, rows, write_gguf, write_safetensors};

fn gguf_source(tiny: &Tiny, tensors: &[Tensor]) -> Result<ModelSource, ModelFileError> {
    let bytes = write_gguf(&tiny.metadata(), tensors);
    ModelSource::from_gguf(GgufFile::from_vec("model.gguf", bytes)?)
}

fn folder_source(tiny: &Tiny) -> ModelSource {
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    ModelSource::open(folder.path()).unwrap() // the mapping outlives the folder
}

#[test]
fn every_architecture_gives_every_tensor_from_both_kinds_of_files() {
    for row in rows() {
        for tied in [false, true] {
            let tiny = Tiny {
                architecture: row.architecture,
                tied,
                ..Tiny::default()
            };
            let folder = folder_source(&tiny);
            let config = folder.config();
            assert_eq!(config.architecture, row.architecture);
            let gguf = gguf_source(&tiny, &tiny.gguf_tensors()).unwrap();
            let mut bytes = 0;
            for name in TensorName::all(config) {
                let (a, b) = (folder.tensor(name).unwrap(), gguf.tensor(name).unwrap());
                assert_eq!((a.shape, a.bytes), (b.shape, b.bytes), "{name}");
                assert_eq!(a.shape, name.shape(config));
                assert_eq!(a.rows() * a.cols(), a.len());
                bytes += a.bytes.len() as u64;
            }
            assert_eq!(folder.weight_bytes(), bytes);
            assert_eq!(gguf.weight_bytes(), bytes);
            let output = gguf.tensor(TensorName::Output).unwrap();
            let expected = ["output.weight", "token_embd.weight"][usize::from(tied)];
            assert_eq!(output.name, expected);
            let bias = TensorName::Layer(0, LayerTensor::AttnQBias);
            assert_eq!(gguf.optional(bias).is_some(), row.needs_qkv_bias);
            let beyond = TensorName::Layer(2, LayerTensor::AttnQ);
            assert!(gguf.optional(beyond).is_none());
            assert!(gguf.tensor(beyond).is_err());
        }
    }
}

#[test]
fn each_missing_or_misshapen_tensor_is_named() {
    for row in rows() {
        let tiny = Tiny {
            architecture: row.architecture,
            ..Tiny::default()
        };
        let tensors = tiny.gguf_tensors();
        for (i, (name, ..)) in tensors.iter().enumerate() {
            let mut without = tensors.clone();
            without.remove(i);
            let result = gguf_source(&tiny, &without);
            // Without an output matrix the embedding stands in for it.
            if name == "output.weight" {
                assert!(result.unwrap().config().tied_embeddings);
            } else {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(&format!("'{name}': is missing")), "{error}");
            }
            let mut wider = tensors.clone();
            wider[i].1.insert(0, 2);
            wider[i].3 = wider[i].3.repeat(2);
            let error = gguf_source(&tiny, &wider).unwrap_err().to_string();
            let embedding = name == "token_embd.weight";
            let named = error.contains(&format!("'{name}': has the shape"));
            assert!(named || (embedding && error.contains("shape")), "{error}");
        }
    }
}

#[test]
fn tensors_that_would_be_left_out_are_refused() {
    let tiny = Tiny::default();
    let vector = |name: &str| (name.to_owned(), vec![32], WeightFormat::F32, vec![0; 128]);
    for name in [
        "blk.0.ffn_gate_inp.weight",
        "blk.2.attn_norm.weight",
        "blk.1.attn_q.bias",
        "x",
    ] {
        let mut tensors = tiny.gguf_tensors();
        tensors.push(vector(name));
        let error = gguf_source(&tiny, &tensors).unwrap_err().to_string();
        assert!(
            error.contains(&format!("'{name}': is not known")),
            "{error}"
        );
    }
    let mut tensors = tiny.gguf_tensors();
    tensors.push(vector("blk.0.rotary_emb.inv_freq"));
    assert!(gguf_source(&tiny, &tensors).is_ok());
}

#[test]
fn a_false_number_of_layers_costs_nothing() {
    let tiny = Tiny::default();
    let mut metadata = tiny.metadata();
    let layers = metadata
        .iter_mut()
        .find(|(key, _)| key == "llama.block_count");
    layers.unwrap().1 = 4096u32.into();
    let bytes = write_gguf(&metadata, &tiny.gguf_tensors());
    let file = GgufFile::from_vec("model.gguf", bytes).unwrap();
    let error = ModelSource::from_gguf(file).unwrap_err().to_string();
    assert!(
        error.contains("'blk.2.attn_norm.weight': is missing"),
        "{error}"
    );
}

#[test]
fn numbers_that_are_none_are_found_and_named() {
    for format in [
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::Q8_0,
        WeightFormat::Q4_0,
    ] {
        let tiny = Tiny {
            format,
            ..Tiny::default()
        };
        let mut tensors = tiny.gguf_tensors();
        let name = "blk.1.ffn_up.weight";
        let at = tensors.iter().position(|tensor| tensor.0 == name).unwrap();
        let block = format.block_bytes();
        tensors[at].3[3 * block..][..block].fill(0xff);
        let source = gguf_source(&tiny, &tensors).unwrap();
        let bad = TensorName::Layer(1, LayerTensor::FfnUp);
        for name in TensorName::all(source.config()) {
            let result = source.tensor(name).unwrap().validate_finite();
            assert_eq!(result.is_err(), name == bad);
        }
        let tensor = source.tensor(bad).unwrap();
        let info = source.gguf().unwrap().tensor(name).unwrap();
        let error = tensor.validate_finite().unwrap_err().to_string();
        let offset = info.offset + 3 * block;
        assert!(
            error.contains(name) && error.contains(&format!("byte {offset} ")),
            "{error}"
        );
    }
}

#[test]
fn advice_does_not_change_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let tiny = Tiny {
        vocab: 4000,
        ..Tiny::default()
    };
    std::fs::write(&path, tiny.gguf()).unwrap();
    let source = ModelSource::open(&path).unwrap();
    let tensor = source.tensor(TensorName::TokenEmbedding).unwrap();
    let (_, _, _, bytes) = &tiny.gguf_tensors()[0];
    assert!(bytes.len() > 4 * 64 * 1024, "several pages");
    source.will_need(&tensor);
    assert_eq!(tensor.bytes, bytes);
    source.done_with(&tensor);
    assert_eq!(tensor.bytes, bytes);
}

#[test]
fn fingerprints_tell_models_apart_and_ignore_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let print = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        ModelSource::open(path).unwrap().fingerprint().unwrap()
    };
    let tiny = Tiny::default();
    let bytes = tiny.gguf();
    let original = print("a.gguf", &bytes);
    assert_eq!(original, print("b.gguf", &bytes));
    let text = original.to_string();
    assert!(text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mut changed = tiny.gguf_tensors();
    changed[4].3[5] ^= 1;
    assert_ne!(
        original,
        print("c.gguf", &write_gguf(&tiny.metadata(), &changed))
    );
    let mut metadata = tiny.metadata();
    metadata.push(("general.name".to_owned(), "other".into()));
    let renamed = write_gguf(&metadata, &tiny.gguf_tensors());
    assert_ne!(original, print("d.gguf", &renamed));
}

#[test]
fn fingerprints_of_folders_cover_configuration_and_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    let print = || {
        ModelSource::open(folder.path())
            .unwrap()
            .fingerprint()
            .unwrap()
    };
    let first = print();
    assert_eq!(first, print());
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let with_tokenizer = print();
    assert_ne!(first, with_tokenizer);
    let mut config = Tiny::default().config_json();
    config["rope_theta"] = 20_000.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    assert_ne!(with_tokenizer, print());
}

#[test]
fn any_file_of_a_folder_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write_folder(folder.path());
    for name in ["", "config.json", "model.safetensors"] {
        let source = ModelSource::open(folder.path().join(name)).unwrap();
        assert_eq!(source.config().architecture, Architecture::Llama);
        assert!(source.folder().is_some() && source.gguf().is_none());
        assert_eq!(source.chat_template().unwrap(), None);
    }
}

#[test]
fn folders_need_an_output_matrix_unless_tied() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::default();
    tiny.write_folder(folder.path());
    let mut tensors = tiny.hf_tensors();
    tensors.retain(|(name, ..)| name != "lm_head.weight");
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, write_safetensors(&tensors)).unwrap();
    let error = ModelSource::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("'lm_head.weight': is missing"), "{error}");
    // Tied, with or without a copy of the embedding.
    let mut config = tiny.config_json();
    config["tie_word_embeddings"] = true.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    assert!(ModelSource::open(folder.path()).is_ok());
    std::fs::write(&path, write_safetensors(&tiny.hf_tensors())).unwrap();
    assert!(ModelSource::open(folder.path()).is_ok());
}

/// Files that are not there as they should be: what is wrong with them is said, not only that they cannot be read.
#[test]
fn pointers_and_pickled_weights_are_named() {
    const POINTER: &str =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let refusal = |change: &dyn Fn(&std::path::Path)| {
        let folder = tempfile::tempdir().unwrap();
        Tiny::default().write_folder(folder.path());
        change(folder.path());
        let opened = ModelSource::open(folder.path());
        opened.err().unwrap().to_string()
    };
    for name in ["model.safetensors", "config.json"] {
        let why = refusal(&|folder| std::fs::write(folder.join(name), POINTER).unwrap());
        assert!(why.contains(name) && why.contains("Git LFS"), "{why}");
    }
    let why = GgufFile::from_vec("m.gguf", POINTER.into());
    let why = why.err().unwrap().to_string();
    assert!(
        why.contains("m.gguf") && why.contains("git lfs pull"),
        "{why}"
    );
    let why = refusal(&|folder| {
        let weights = folder.join("model.safetensors");
        std::fs::rename(weights, folder.join("pytorch_model.bin")).unwrap();
    });
    assert!(
        why.contains("pytorch_model.bin: weights: are in PyTorch's own form"),
        "{why}"
    );
}

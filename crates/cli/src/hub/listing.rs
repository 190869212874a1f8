//! Which of a model's files are needed.

use crate::bytes::show;

/// A file of a model, as the hub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// If the hub says it.
    pub bytes: Option<u64>,
}

/// Small files beside the weights of a folder that neap reads.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "modules.json",
    "adapter_config.json",
    "model.safetensors.index.json",
];

/// The files to get of a model, or of it what `wanted` names: a file, or a part of one's name.
pub fn choose(listed: &[Listed], wanted: Option<&str>) -> Result<Vec<Listed>, String> {
    let names: Vec<String> = listed.iter().map(|file| file.name.clone()).collect();
    let by_name = |names: Vec<String>| -> Vec<Listed> {
        let listed = listed.iter().filter(|file| names.contains(&file.name));
        listed.cloned().collect()
    };
    if let Some(wanted) = wanted {
        if names.iter().any(|name| name == wanted) && !wanted.ends_with(".gguf") {
            return Ok(by_name(vec![wanted.to_owned()]));
        }
        return choose_gguf(&names, Some(wanted)).map(by_name);
    }
    let is_weights = |name: &String| {
        let whole = ["model.safetensors", "adapter_model.safetensors"];
        whole.contains(&name.as_str()) || part_of_split(name, "model", ".safetensors")
    };
    if names.iter().any(is_weights) {
        let needed = |name: &&String| is_weights(name) || BESIDE.contains(&name.as_str());
        return Ok(by_name(names.iter().filter(needed).cloned().collect()));
    }
    choose_gguf(&names, None).map(by_name).map_err(|why| {
        let sizes = listed.iter().filter(|file| file.name.ends_with(".gguf"));
        let sizes = sizes.map(|file| match file.bytes {
            Some(bytes) => format!("\n  {}  {}", file.name, show(bytes)),
            None => format!("\n  {}", file.name),
        });
        format!("{why}{}", sizes.collect::<String>())
    })
}

/// The GGUF file that is meant, with all parts of a split one, the first one first.
pub fn choose_gguf(names: &[String], wanted: Option<&str>) -> Result<Vec<String>, String> {
    let all: Vec<&String> = names.iter().filter(|n| n.ends_with(".gguf")).collect();
    let exact = all.iter().filter(|name| Some(name.as_str()) == wanted);
    let mut meant: Vec<&String> = exact.copied().collect();
    if meant.is_empty() {
        let wanted = wanted.unwrap_or_default().to_ascii_lowercase();
        let contains = |name: &&&String| name.to_ascii_lowercase().contains(&wanted);
        meant = all.iter().filter(contains).copied().collect();
    }
    let Some(first) = meant.first() else {
        return match wanted {
            Some(wanted) => Err(format!("there is no file {wanted:?}")),
            None => Err("there are neither safetensors nor GGUF files".to_owned()),
        };
    };
    let Some(stem) = split_stem(first) else {
        return match meant.len() {
            1 => Ok(vec![(*first).clone()]),
            n => Err(format!("{n} files could be meant; add :FILE")),
        };
    };
    let parts = all.iter().filter(|name| split_stem(name) == Some(stem));
    let mut parts: Vec<String> = parts.map(|name| (*name).clone()).collect();
    if meant.iter().any(|name| split_stem(name) != Some(stem)) {
        return Err("several files could be meant; add :FILE".to_owned());
    }
    parts.sort();
    Ok(parts)
}

/// What stands before `-00001-of-00003.gguf`.
fn split_stem(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".gguf")?;
    let (stem, of) = stem.rsplit_once("-of-")?;
    let (stem, part) = stem.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.chars().all(|c| c.is_ascii_digit());
    (is_number(of) && is_number(part)).then_some(stem)
}

/// `PREFIX-00001-of-00003END`.
fn part_of_split(name: &str, prefix: &str, end: &str) -> bool {
    let stem = name.strip_prefix(prefix).and_then(|n| n.strip_suffix(end));
    stem.is_some_and(|stem| stem.starts_with('-') && stem.contains("-of-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chosen(all: &[&str], wanted: Option<&str>) -> Result<Vec<String>, String> {
        let listed: Vec<Listed> = names(all)
            .into_iter()
            .map(|name| Listed {
                name,
                bytes: Some(1 << 20),
            })
            .collect();
        let chosen = choose(&listed, wanted)?;
        Ok(chosen.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn a_folder_is_got_with_what_lies_beside_its_weights() {
        let all = [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let got = chosen(&all, None).unwrap();
        assert_eq!(
            got,
            names(&["config.json", all[2], all[3], all[4], "tokenizer.json"])
        );
        assert_eq!(
            chosen(&all, Some("README.md")).unwrap(),
            names(&["README.md"])
        );
        assert!(chosen(&["README.md"], None).is_err());
        let adapter = ["adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(chosen(&adapter, None).unwrap(), names(&adapter));
    }

    #[test]
    fn one_gguf_file_is_chosen_or_all_are_named() {
        let all = [
            "a-Q4_K_M.gguf",
            "a-Q8_0.gguf",
            "a-F16-00001-of-00002.gguf",
            "a-F16-00002-of-00002.gguf",
        ];
        let why = chosen(&all, None).unwrap_err();
        assert!(why.contains("a-Q8_0.gguf  1"), "{why}");
        assert_eq!(chosen(&all, Some("q4_k_m")).unwrap(), names(&all[..1]));
        assert_eq!(
            chosen(&all, Some("a-Q8_0.gguf")).unwrap(),
            names(&all[1..2])
        );
        assert_eq!(chosen(&all, Some("f16")).unwrap(), names(&all[2..]));
        assert_eq!(chosen(&all, Some(all[3])).unwrap(), names(&all[2..]));
        assert_eq!(chosen(&all[..1], None).unwrap(), names(&all[..1]));
        assert_eq!(chosen(&all[2..], None).unwrap(), names(&all[2..]));
        assert!(chosen(&all, Some("Q5")).unwrap_err().contains("Q5"));
    }
}

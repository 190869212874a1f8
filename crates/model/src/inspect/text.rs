//! An inspection as plain text.

use std::fmt::{self, Display, Formatter};

use super::{BudgetOutlook, Inspection, MemoryCost};
use crate::config::{ModelConfig, QkNorm, RopeScaling};

impl Display for Inspection {
    /// Writes everything but the list of tensors; `{:#}` adds it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        line(f, "file", self.path.display())?;
        let files = match self.files {
            1 => String::new(),
            files => format!(" in {files} files"),
        };
        line(
            f,
            "format",
            format_args!("{}, {}{files}", self.container, Bytes(self.file_bytes)),
        )?;
        line(f, "architecture", &self.architecture)?;
        line(f, "parameters", count(self.parameters))?;
        if let Some(config) = &self.config {
            write_config(f, config)?;
        }
        match &self.tokenizer {
            None => line(f, "tokenizer", "none")?,
            Some(tokenizer) => {
                let pre = match &tokenizer.pre {
                    Some(pre) => format!(" ({pre})"),
                    None => String::new(),
                };
                let text = format!("{}{pre}, {} tokens", tokenizer.model, tokenizer.tokens);
                line(f, "tokenizer", text)?;
            }
        }
        let template = if self.chat_template { "yes" } else { "no" };
        line(f, "chat template", template)?;
        if let Some(problem) = &self.problem {
            line(f, "cannot be run", problem)?;
        }
        writeln!(f)?;
        self.write_formats(f)?;
        if let Some(memory) = &self.memory {
            writeln!(f)?;
            write_memory(f, memory)?;
        }
        if let Some(budget) = &self.budget {
            writeln!(f)?;
            write_budget(f, budget)?;
        }
        if f.alternate() {
            writeln!(f)?;
            self.write_tensors(f)?;
        }
        Ok(())
    }
}

impl Inspection {
    fn write_formats(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bytes_of = |bytes: u64| Bytes(bytes).to_string();
        let header = ["weights", "tensors", "parameters", "bytes"].map(str::to_owned);
        let rows = self.formats.iter().map(|share| {
            [
                share.format.to_owned(),
                share.tensors.to_string(),
                count(share.parameters),
                bytes_of(share.bytes),
            ]
        });
        let total = [
            "all".to_owned(),
            self.tensors.len().to_string(),
            count(self.parameters),
            bytes_of(self.tensor_bytes),
        ];
        let all: Vec<_> = [header].into_iter().chain(rows).chain([total]).collect();
        write_table(f, &all)
    }

    fn write_tensors(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header = ["tensor", "shape", "format", "bytes"].map(str::to_owned);
        let rows = self.tensors.iter().map(|tensor| {
            let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
            [
                printable(&tensor.name),
                shape.join(" x "),
                tensor.format.to_owned(),
                Bytes(tensor.bytes).to_string(),
            ]
        });
        let all: Vec<_> = [header].into_iter().chain(rows).collect();
        write_table(f, &all)
    }
}

fn line(f: &mut Formatter<'_>, label: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{label:<14} {}", printable(&value.to_string()))
}

/// The text without control characters: file contents must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn write_config(f: &mut Formatter<'_>, config: &ModelConfig) -> fmt::Result {
    if let Some(name) = &config.name {
        line(f, "name", name)?;
    }
    line(
        f,
        "shape",
        format_args!(
            "{} layers of width {}, feed-forward {}, vocabulary {}",
            config.layers, config.hidden_size, config.ffn_size, config.vocab_size
        ),
    )?;
    let window = match config.sliding_window {
        Some(tokens) => format!(", window of {tokens} tokens"),
        None => String::new(),
    };
    line(
        f,
        "attention",
        format_args!(
            "{} heads, {} of keys and values, {} dimensions each{window}",
            config.heads, config.kv_heads, config.head_dim
        ),
    )?;
    line(
        f,
        "context",
        format_args!("{} tokens", config.context_length),
    )?;
    let rope = &config.rope;
    let scaling = match &rope.scaling {
        RopeScaling::None => "not scaled".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::Dynamic { factor, .. } => format!("dynamic scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("Llama 3 scaling by {factor}"),
        RopeScaling::Divisors { .. } => "scaled by a list of divisors".to_owned(),
        RopeScaling::Yarn { factor, .. } => format!("YaRN scaling by {factor}"),
        RopeScaling::LongRope { .. } => "LongRoPE scaling".to_owned(),
    };
    line(
        f,
        "rotary",
        format_args!("base {}, {} dimensions, {scaling}", rope.base, rope.dims),
    )?;
    let options = [
        (config.qkv_bias, "biased queries, keys and values"),
        (config.attn_output_bias, "biased attention output"),
        (config.qk_norm != QkNorm::None, "normed queries and keys"),
        (config.tied_embeddings, "tied embeddings"),
    ];
    let set: Vec<_> = options
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        return Ok(());
    }
    line(f, "options", set.join(", "))
}

fn write_memory(f: &mut Formatter<'_>, memory: &MemoryCost) -> fmt::Result {
    let MemoryCost { context, batch, .. } = memory;
    writeln!(
        f,
        "memory for {batch} sequence(s) of {context} tokens, 16-bit keys and values"
    )?;
    let trimmed = memory.kv_bytes_trimmed.map(|bytes| {
        let bytes = Bytes(bytes);
        format!("; {bytes} where room is short, with windows of layers alone")
    });
    let trimmed = trimmed.unwrap_or_default();
    let rows = [
        ("weights", memory.weight_bytes, String::new()),
        (
            "keys and values",
            memory.kv_bytes,
            format!(", {} a token{trimmed}", Bytes(memory.kv_bytes_per_token)),
        ),
        ("scratch", memory.scratch_bytes, String::new()),
        ("total", memory.total_bytes, String::new()),
    ];
    for (name, bytes, note) in rows {
        writeln!(f, "  {name:<16} {:>10}{note}", Bytes(bytes).to_string())?;
    }
    Ok(())
}

fn write_budget(f: &mut Formatter<'_>, outlook: &BudgetOutlook) -> fmt::Result {
    write!(f, "in a budget of {}: ", Bytes(outlook.budget_bytes))?;
    match outlook.streamed_bytes_per_step {
        None => return writeln!(f, "too small to run"),
        Some(0) => return writeln!(f, "all weights find room"),
        Some(bytes) => write!(
            f,
            "{} of weights are read from the file at each step",
            Bytes(bytes)
        )?,
    }
    if let Some((disk, steps)) = outlook.disk_bytes_per_s.zip(outlook.steps_per_s_at_most) {
        let disk = Bytes(disk as u64);
        write!(
            f,
            "; its disk gives {disk} a second, so {steps:.1} tokens a second at most"
        )?;
    }
    writeln!(f)
}

/// Writes rows of four cells: the first two to the left, the others to the right.
fn write_table(f: &mut Formatter<'_>, rows: &[[String; 4]]) -> fmt::Result {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let [a, b, c, d] = [width(0), width(1), width(2), width(3)];
    for [first, second, third, fourth] in rows {
        writeln!(f, "{first:<a$}  {second:<b$}  {third:>c$}  {fourth:>d$}")?;
    }
    Ok(())
}

/// A number of bytes in the unit that fits it.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// A number with the usual suffix: `8.03 B`, `271 M`, `260 k`.
fn count(number: u64) -> String {
    let value = number as f64;
    match number {
        0..=9_999 => number.to_string(),
        10_000..=999_499 => format!("{:.0} k", value / 1e3),
        999_500..=9_994_999 => format!("{:.2} M", value / 1e6),
        9_995_000..=999_499_999 => format!("{:.0} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_fitting_units() {
        let bytes = |n| Bytes(n).to_string();
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(260_032), "260 k");
        assert_eq!(count(999_999), "1.00 M");
        assert_eq!(count(8_030_261_248), "8.03 B");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}

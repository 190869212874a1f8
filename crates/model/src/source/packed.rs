//! Matrices packed in 4 bits by GPTQ and AWQ: `qweight`, `qzeros`, `scales` and perhaps `g_idx` in the place of `weight`.
//!
//! ```text
//!          GPTQ                                      AWQ
//! qweight  [inputs / 8][outputs], eight inputs       [inputs][outputs / 8], eight outputs
//! qzeros   [groups][outputs / 8], less 1             [groups][outputs / 8]
//! scales   [groups][outputs]                         [groups][outputs]
//! g_idx    [inputs]: the group of each
//! weight   = scale * (code - zero)
//! ```
//!
//! Words are 32 bits, the first of eight codes in the lowest four bits; AWQ has outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.
//!
//! Where groups are whole blocks of 32 inputs, a row becomes Q4_0 if all zeros are 8, else Q4_1: the codes are kept, and so
//! are the scales; of Q4_1 scale times zero is rounded to half precision, by less than a 200th of a step. Where inputs were
//! put in groups by their weight ("act-order") neighbours have different scales, and a row becomes Q8_0, which takes twice
//! the room and moves values by at most a 254th of the largest of 32.

use neap_kernels::format::{WeightFormat, f16_to_f32, f32_to_f16};

use super::files::Part;
use super::tensor::{Stored, TensorInfo};
use super::{Container, ModelFileError};
use crate::config::{Int4Layout, ModelConfig};

/// Values of a block of the formats that rows become.
const BLOCK: usize = 32;
/// Where AWQ puts each of eight outputs in a word.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Where the parts of a packed matrix are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Numbers of tensors in the container.
    pub codes: u32,
    zeros: u32,
    scales: u32,
    /// Only where it says something.
    groups: Option<u32>,
    layout: Int4Layout,
    group_size: usize,
    inputs: usize,
    /// Of the file's matrix, and the first of the wanted one.
    outputs: usize,
    first: usize,
}

/// A packed matrix, and the format that its rows become.
pub(super) type Found = (Packed, WeightFormat);

/// The bytes of a packed matrix.
struct View<'a> {
    packed: Packed,
    codes: &'a [u8],
    zeros: &'a [u8],
    scales: &'a [u8],
    scale_format: WeightFormat,
    groups: Option<&'a [u8]>,
}

/// Looks for the parts of the matrix that would be called `name` if it were not packed. `shape` is that of the wanted part.
pub(super) fn find(
    name: &str,
    part: Part,
    shape: &[usize],
    config: &ModelConfig,
    container: &Container,
) -> Result<Option<Found>, ModelFileError> {
    let Some(base) = name.strip_suffix(".weight") else {
        return Ok(None);
    };
    let Some(codes) = container.tensor_number(&format!("{base}.qweight")) else {
        return Ok(None);
    };
    let parts = Parts { base, container };
    let refuse = |reason: &str| Err(parts.refuse(&container.tensors()[codes], reason));
    let Some(int4) = config.int4 else {
        return refuse(
            "holds packed codes, but neither config.json (quantization_config) nor quantize_config.json says how",
        );
    };
    let (first, outputs) = match (part, shape) {
        (Part::Whole, [rows, _]) => (0, *rows),
        (Part::Rows { first, of }, [_, _]) => (first, of),
        _ => return refuse("is packed, which is supported for matrices that lie by rows only"),
    };
    let inputs = shape[1];
    if !inputs.is_multiple_of(8) || !outputs.is_multiple_of(8) {
        return refuse("is packed, but its inputs and outputs are no multiples of 8");
    }
    let group_size = int4.group_size.unwrap_or(inputs);
    let groups = inputs.div_ceil(group_size);
    let code_shape = match int4.layout {
        Int4Layout::Awq => [inputs, outputs / 8],
        Int4Layout::Gptq | Int4Layout::GptqV2 => [inputs / 8, outputs],
    };
    parts.integers("qweight", &code_shape)?;
    let zeros = parts.integers("qzeros", &[groups, outputs / 8])?;
    let scales = parts.scales(&[groups, outputs])?;
    let mut packed = Packed {
        codes: codes as u32,
        zeros,
        scales,
        groups: None,
        layout: int4.layout,
        group_size,
        inputs,
        outputs,
        first,
    };
    if container.tensor_number(&format!("{base}.g_idx")).is_some() {
        packed.groups = parts.act_order(groups, group_size, inputs)?;
    }
    let format = packed.format(container);
    Ok(Some((packed, format)))
}

/// The tensors whose names begin with `base`.
struct Parts<'a> {
    base: &'a str,
    container: &'a Container,
}

impl Parts<'_> {
    fn refuse(&self, info: &TensorInfo, reason: impl Into<String>) -> ModelFileError {
        ModelFileError::tensor(self.container.file_path(info.file), &info.name, reason)
    }

    fn of_shape(&self, suffix: &str, shape: &[usize]) -> Result<u32, ModelFileError> {
        let name = format!("{}.{suffix}", self.base);
        let Some(number) = self.container.tensor_number(&name) else {
            let path = self.container.path();
            return Err(ModelFileError::tensor(path, name, "is missing"));
        };
        let info = &self.container.tensors()[number];
        if info.shape != shape {
            let reason = format!("has the shape {:?}, not {shape:?}", info.shape);
            return Err(self.refuse(info, reason));
        }
        Ok(number as u32)
    }

    fn integers(&self, suffix: &str, shape: &[usize]) -> Result<u32, ModelFileError> {
        let number = self.of_shape(suffix, shape)?;
        let info = &self.container.tensors()[number as usize];
        if info.stored != Stored::I32 {
            let reason = format!("is {}, not I32", info.type_name());
            return Err(self.refuse(info, reason));
        }
        Ok(number)
    }

    fn scales(&self, shape: &[usize]) -> Result<u32, ModelFileError> {
        let number = self.of_shape("scales", shape)?;
        let info = &self.container.tensors()[number as usize];
        if info.stored != Stored::AsFormat || !info.format.is_float() {
            let reason = format!("is {}, no scale", info.type_name());
            return Err(self.refuse(info, reason));
        }
        Ok(number)
    }

    /// `g_idx`, if neighbours are not in one group.
    fn act_order(
        &self,
        groups: usize,
        group_size: usize,
        inputs: usize,
    ) -> Result<Option<u32>, ModelFileError> {
        let number = self.integers("g_idx", &[inputs])?;
        let info = &self.container.tensors()[number as usize];
        let bytes = bytes_of(self.container, number);
        let mut is_plain = true;
        for input in 0..inputs {
            let group = word(bytes, input) as usize;
            if group >= groups {
                let reason = format!("puts input {input} in group {group} of {groups}");
                return Err(self.refuse(info, reason));
            }
            is_plain &= group == input / group_size;
        }
        Ok((!is_plain).then_some(number))
    }
}

fn bytes_of(container: &Container, number: u32) -> &[u8] {
    let info = &container.tensors()[number as usize];
    &container.file_bytes(info.file)[info.range()]
}

/// Word `index` of `bytes`, which need not be aligned.
fn word(bytes: &[u8], index: usize) -> u32 {
    let at = &bytes[4 * index..];
    u32::from_le_bytes([at[0], at[1], at[2], at[3]])
}

impl Packed {
    fn view(self, container: &Container) -> View<'_> {
        View {
            packed: self,
            codes: bytes_of(container, self.codes),
            zeros: bytes_of(container, self.zeros),
            scales: bytes_of(container, self.scales),
            scale_format: container.tensors()[self.scales as usize].format,
            groups: self.groups.map(|number| bytes_of(container, number)),
        }
    }

    /// The format that loses least of what the common kernels serve.
    fn format(self, container: &Container) -> WeightFormat {
        if !self.inputs.is_multiple_of(BLOCK) {
            return WeightFormat::F16;
        }
        if self.groups.is_some() || !self.group_size.is_multiple_of(BLOCK) {
            return WeightFormat::Q8_0;
        }
        // A word holds eight zeros in either layout, so they need not be told apart.
        let middle = match self.layout {
            Int4Layout::Gptq => 0x7777_7777,
            Int4Layout::GptqV2 | Int4Layout::Awq => 0x8888_8888,
        };
        let zeros = bytes_of(container, self.zeros);
        match (0..zeros.len() / 4).all(|index| word(zeros, index) == middle) {
            true => WeightFormat::Q4_0,
            false => WeightFormat::Q4_1,
        }
    }

    /// The values of row `row` of the wanted matrix.
    pub fn read_row(self, container: &Container, row: usize, out: &mut [f32]) {
        let view = self.view(container);
        let output = self.first + row;
        let mut known = None;
        for (input, value) in out.iter_mut().enumerate() {
            let group = view.group(input);
            let (_, scale, zero) = match known {
                Some(known @ (of, _, _)) if of == group => known,
                _ => (group, view.scale(group, output), view.zero(group, output)),
            };
            known = Some((group, scale, zero));
            *value = scale * (view.code(input, output) as f32 - zero as f32);
        }
    }

    /// Row `row` in Q4_0 or Q4_1, as `format` says, with the codes as they are.
    ///
    /// # Errors
    /// If a scale is no finite number.
    pub fn encode_row(
        self,
        container: &Container,
        format: WeightFormat,
        row: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let view = self.view(container);
        let output = self.first + row;
        for (index, block) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
            let first = index * BLOCK;
            let group = view.group(first);
            let scale = view.scale(group, output);
            let least = -scale * view.zero(group, output) as f32;
            let (scale, least) = (f32_to_f16(scale), f32_to_f16(least));
            if !f16_to_f32(scale).is_finite() || !f16_to_f32(least).is_finite() {
                return Err(format!(
                    "the scale of group {group}, output {output} is not a finite number in half precision"
                ));
            }
            block[..2].copy_from_slice(&scale.to_le_bytes());
            let codes = match format {
                WeightFormat::Q4_1 => {
                    block[2..4].copy_from_slice(&least.to_le_bytes());
                    &mut block[4..]
                }
                _ => &mut block[2..],
            };
            for (i, byte) in codes.iter_mut().enumerate() {
                let low = view.code(first + i, output);
                let high = view.code(first + BLOCK / 2 + i, output);
                *byte = (low | high << 4) as u8;
            }
        }
        Ok(())
    }
}

impl View<'_> {
    fn group(&self, input: usize) -> usize {
        match self.groups {
            Some(groups) => word(groups, input) as usize,
            None => input / self.packed.group_size,
        }
    }

    fn scale(&self, group: usize, output: usize) -> f32 {
        let size = self.scale_format.block_bytes();
        let at = (group * self.packed.outputs + output) * size;
        let mut scale = [f32::NAN];
        match self
            .scale_format
            .dequantize(&self.scales[at..at + size], &mut scale)
        {
            Ok(()) => scale[0],
            Err(why) => unreachable!("one value of a float format: {why}"),
        }
    }

    /// Code `place` of a word.
    fn nibble(word: u32, place: usize) -> u32 {
        word >> (4 * place) & 0xF
    }

    fn zero(&self, group: usize, output: usize) -> u32 {
        let word = word(self.zeros, group * (self.packed.outputs / 8) + output / 8);
        match self.packed.layout {
            Int4Layout::Gptq => Self::nibble(word, output % 8) + 1,
            Int4Layout::GptqV2 => Self::nibble(word, output % 8),
            Int4Layout::Awq => Self::nibble(word, AWQ_PLACE[output % 8]),
        }
    }

    fn code(&self, input: usize, output: usize) -> u32 {
        let outputs = self.packed.outputs;
        match self.packed.layout {
            Int4Layout::Awq => {
                let word = word(self.codes, input * (outputs / 8) + output / 8);
                Self::nibble(word, AWQ_PLACE[output % 8])
            }
            Int4Layout::Gptq | Int4Layout::GptqV2 => {
                let word = word(self.codes, input / 8 * outputs + output);
                Self::nibble(word, input % 8)
            }
        }
    }
}

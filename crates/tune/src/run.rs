//! A training run in a folder: it can be stopped at any moment, by a kill too, and goes on where it last stored itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use neap_model::config::ModelConfig;
use neap_model::source::ModelSource;
use serde::{Deserialize, Serialize};

use crate::adapter::{Target, replace, write_text};
use crate::data::Example;
use crate::trainer::Trainer;
use crate::{TuneError, plan};

/// The layout of `state.json` and of the file that it names.
const VERSION: u32 = 1;

/// How to train.
#[derive(Clone, Debug)]
pub struct Options {
    /// Matrices that are adapted.
    pub targets: Vec<Target>,
    /// The adapter's rank.
    pub rank: usize,
    /// The adapter counts `alpha / rank` times.
    pub alpha: f64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How often every example is seen.
    pub epochs: usize,
    /// Tokens of a step, filled-up ones counted.
    pub batch_tokens: usize,
    /// Tokens of an example.
    pub max_tokens: usize,
    /// Steps after which the run stores itself.
    pub save_every: usize,
    /// For the order of examples and the first values.
    pub seed: u64,
}

impl Options {
    fn check(&self) -> Result<(), TuneError> {
        let refuse = |what: &str| Err(TuneError::Options(what.to_owned()));
        if self.targets.is_empty() {
            return refuse("there is no matrix to adapt");
        }
        if self.rank == 0 || self.epochs == 0 || self.batch_tokens == 0 || self.save_every == 0 {
            return refuse(
                "rank, epochs, tokens of a step and steps between savings must be at least 1",
            );
        }
        if self.max_tokens < 2 {
            return refuse("an example needs two tokens at least");
        }
        let is_good = |number: f64| number > 0.0 && number.is_finite();
        if !is_good(self.alpha) || !is_good(self.learning_rate) {
            return refuse("alpha and learning rate must be above 0");
        }
        Ok(())
    }

    /// Bytes that training takes at most, about: weights of four bytes, the adapter four times over, and what a step
    /// remembers until its derivatives are known.
    pub fn bytes_needed(&self, config: &ModelConfig) -> u64 {
        let (hidden, ffn) = (config.hidden_size as u64, config.ffn_size as u64);
        let (q, kv) = (config.q_size() as u64, config.kv_size() as u64);
        let layers = config.layers as u64;
        let layer = hidden * (2 * q + 2 * kv + 3 * ffn);
        let weights = layers * layer + 2 * config.vocab_size as u64 * hidden;
        let thin = layers * self.rank as u64 * (6 * hidden + 2 * q + 2 * kv + 3 * ffn);
        let tokens = self.batch_tokens.max(self.max_tokens) as u64;
        let row = 16 * hidden + 12 * q + 12 * kv + 12 * ffn;
        let scores = 8 * config.heads as u64 * self.max_tokens as u64;
        let remembered = tokens * (layers * (row + scores) + 4 * config.vocab_size as u64);
        4 * (weights + 4 * thin + remembered)
    }

    /// All that a stored state depends on.
    fn description(&self) -> String {
        let targets: Vec<&str> = self.targets.iter().map(|target| target.name()).collect();
        format!(
            "targets {} rank {} alpha {} learning rate {} epochs {} batch {} most {} seed {}",
            targets.join(","),
            self.rank,
            self.alpha,
            self.learning_rate,
            self.epochs,
            self.batch_tokens,
            self.max_tokens,
            self.seed
        )
    }
}

/// A point of a run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps made.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// The last step's loss, in nats a token.
    pub loss: f32,
    /// The loss of the examples kept apart, where it was just measured.
    pub held_out: Option<f64>,
}

/// `state.json`.
#[derive(Default, Serialize, Deserialize)]
struct State {
    version: u32,
    options: String,
    model: String,
    data: String,
    step: usize,
    updates: u32,
    /// The file beside it with the adapter and the optimizer's moments.
    tensors: String,
    losses: Vec<(usize, f32)>,
    held_out: Vec<(usize, f64)>,
}

/// See the module.
pub struct Run<'a> {
    trainer: Trainer,
    source: &'a ModelSource,
    base: String,
    options: Options,
    folder: PathBuf,
    examples: &'a [Example],
    held_out: &'a [Example],
    state: State,
}

impl<'a> Run<'a> {
    /// Begins a run in `folder`, or goes on with the one there. `base` is how the adapter names its model.
    ///
    /// # Errors
    /// If the model cannot be tuned, the options make no training, or what is in the folder is of another run or damaged.
    pub fn open(
        folder: &Path,
        source: &'a ModelSource,
        base: &str,
        (examples, held_out): (&'a [Example], &'a [Example]),
        options: Options,
    ) -> Result<Self, TuneError> {
        options.check()?;
        if examples.is_empty() {
            return Err(TuneError::Options("there is nothing to learn".into()));
        }
        let trainer = Trainer::new(source, &options)?;
        std::fs::create_dir_all(folder.join("training")).map_err(|why| TuneError::File {
            path: folder.to_owned(),
            why,
        })?;
        let state = State {
            version: VERSION,
            options: options.description(),
            model: hex(&source.fingerprint()?.0),
            data: format!("{:016x}", hash(examples)),
            ..State::default()
        };
        let mut run = Self {
            trainer,
            source,
            base: base.to_owned(),
            folder: folder.to_owned(),
            examples,
            held_out,
            state,
            options,
        };
        run.go_on()?;
        Ok(run)
    }

    /// Steps that were made before.
    pub fn steps_done(&self) -> usize {
        self.state.step
    }

    /// Losses of the steps so far.
    pub fn losses(&self) -> &[(usize, f32)] {
        &self.state.losses
    }

    /// Losses of the examples kept apart, by step.
    pub fn held_out(&self) -> &[(usize, f64)] {
        &self.state.held_out
    }

    /// Trains to the end, or until `progress` says no; then stores the adapter.
    ///
    /// # Errors
    /// If the loss is no number any more, or a file cannot be written.
    pub fn train(
        &mut self,
        progress: &mut dyn FnMut(&Self, Progress) -> bool,
    ) -> Result<(), TuneError> {
        let lengths: Vec<usize> = self.examples.iter().map(|e| e.tokens.len()).collect();
        let Options {
            epochs,
            batch_tokens,
            seed,
            ..
        } = self.options;
        let plan: Vec<_> = (0..epochs)
            .flat_map(|epoch| plan::steps(&lengths, batch_tokens, seed, epoch))
            .collect();
        if self.state.held_out.is_empty() {
            self.measure_held_out()?;
        }
        let mut goes_on = true;
        while goes_on && self.state.step < plan.len() {
            let step = self.state.step;
            let examples: Vec<&Example> = plan[step].iter().map(|&i| &self.examples[i]).collect();
            let rate = self.options.learning_rate * plan::rate_share(step, plan.len());
            let loss = self.trainer.step(&examples, rate)?;
            if !loss.is_finite() {
                return Err(TuneError::Diverged { step, loss });
            }
            self.state.losses.push((step + 1, loss));
            self.state.step += 1;
            let is_last = self.state.step == plan.len();
            let measured = match is_last || self.state.step.is_multiple_of(self.options.save_every)
            {
                true => self.measure_held_out()?,
                false => None,
            };
            goes_on = progress(
                self,
                Progress {
                    step: self.state.step,
                    steps: plan.len(),
                    loss,
                    held_out: measured,
                },
            );
            if is_last || !goes_on || self.state.step.is_multiple_of(self.options.save_every) {
                self.store()?;
            }
        }
        Ok(())
    }

    fn measure_held_out(&mut self) -> Result<Option<f64>, TuneError> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let lengths: Vec<usize> = self.held_out.iter().map(|e| e.tokens.len()).collect();
        let (mut sum, mut count) = (0.0, 0);
        for step in plan::steps(&lengths, self.options.batch_tokens, 0, 0) {
            let examples: Vec<&Example> = step.iter().map(|&i| &self.held_out[i]).collect();
            let (losses, tokens) = self.trainer.loss(&examples)?;
            (sum, count) = (sum + losses, count + tokens);
        }
        let mean = sum / count.max(1) as f64;
        self.state.held_out.push((self.state.step, mean));
        Ok(Some(mean))
    }

    /// Writes the adapter, then what it takes to go on.
    fn store(&mut self) -> Result<(), TuneError> {
        let config = self.source.config();
        self.trainer
            .adapter
            .export(&self.folder, config, &self.base)?;
        let training = self.folder.join("training");
        let before = std::mem::take(&mut self.state.tensors);
        self.state.tensors = format!("step-{}.safetensors", self.state.step);
        self.state.updates = self.trainer.adam.updates;
        let tensors = self.tensors();
        replace(&training.join(&self.state.tensors), |part| {
            Ok(candle_core::safetensors::save(&tensors, part)?)
        })?;
        let text = serde_json::to_string_pretty(&self.state)
            .map_err(|why| self.state_error(why.to_string()))?;
        write_text(&training.join("state.json"), &text)?;
        if !before.is_empty() && before != self.state.tensors {
            // What is left over costs room, nothing else.
            let _ = std::fs::remove_file(training.join(before));
        }
        Ok(())
    }

    fn tensors(&self) -> HashMap<String, Tensor> {
        let variables = self.trainer.adapter.variables();
        let all = variables.zip(&self.trainer.adam.moments).enumerate();
        all.flat_map(|(number, (variable, moments))| {
            [
                (format!("value.{number}"), variable.as_tensor().clone()),
                (format!("mean.{number}"), moments.mean.clone()),
                (format!("square.{number}"), moments.square.clone()),
            ]
        })
        .collect()
    }

    fn state_error(&self, reason: String) -> TuneError {
        TuneError::State {
            path: self.folder.join("training/state.json"),
            reason,
        }
    }

    /// Takes up what an earlier run stored, if one did.
    fn go_on(&mut self) -> Result<(), TuneError> {
        let training = self.folder.join("training");
        let text = match std::fs::read(training.join("state.json")) {
            Ok(text) => text,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(why) => return Err(self.state_error(why.to_string())),
        };
        let stored: State =
            serde_json::from_slice(&text).map_err(|why| self.state_error(why.to_string()))?;
        let own = &self.state;
        for (what, stored, own) in [
            ("version", stored.version.to_string(), VERSION.to_string()),
            ("options", stored.options.clone(), own.options.clone()),
            ("model", stored.model.clone(), own.model.clone()),
            ("data", stored.data.clone(), own.data.clone()),
        ] {
            if stored != own {
                return Err(self.state_error(format!(
                    "is of a run with other {what}: {stored}, not {own}"
                )));
            }
        }
        // A name with a folder in it is not one of ours.
        if stored.tensors.contains(['/', '\\']) {
            return Err(self.state_error(format!("names {:?}", stored.tensors)));
        }
        let tensors = candle_core::safetensors::load(training.join(&stored.tensors), &Device::Cpu)
            .map_err(|why| self.state_error(format!("{}: {why}", stored.tensors)))?;
        self.take(&tensors)?;
        self.trainer.adam.updates = stored.updates;
        self.state = stored;
        Ok(())
    }

    fn take(&mut self, tensors: &HashMap<String, Tensor>) -> Result<(), TuneError> {
        let variables: Vec<_> = self.trainer.adapter.variables().cloned().collect();
        for (number, variable) in variables.iter().enumerate() {
            let find = |kind: &str| {
                let name = format!("{kind}.{number}");
                let found = tensors.get(&name).filter(|tensor| {
                    tensor.shape() == variable.shape() && tensor.dtype() == variable.dtype()
                });
                found
                    .cloned()
                    .ok_or_else(|| self.state_error(format!("{name} is missing or misshapen")))
            };
            let (value, mean, square) = (find("value")?, find("mean")?, find("square")?);
            variable.set(&value)?;
            let moments = &mut self.trainer.adam.moments[number];
            (moments.mean, moments.square) = (mean, square);
        }
        Ok(())
    }
}

/// FNV-1a (Fowler, Noll and Vo 1991) of what is learned from: tells other data, not forged ones.
fn hash(examples: &[Example]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |number: u32| {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for example in examples {
        example.tokens.iter().for_each(|&token| add(token));
        example.learned().for_each(|place| add(place as u32));
        add(u32::MAX);
    }
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

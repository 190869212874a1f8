//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) whose state can be stored. Weight decay is left out: adapters
//! start at zero.

use candle_core::{Tensor, Var, backprop::GradStore};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPS: f64 = 1e-8;
/// Gradients whose norm, of all together, is greater are made this long.
const MOST_NORM: f64 = 1.0;

/// Running means of a variable's gradient and of its square.
pub(crate) struct Moments {
    pub mean: Tensor,
    pub square: Tensor,
}

#[derive(Default)]
pub(crate) struct Adam {
    /// One for each variable.
    pub moments: Vec<Moments>,
    /// Updates made.
    pub updates: u32,
}

impl Adam {
    pub fn new<'a>(variables: impl Iterator<Item = &'a Var>) -> Result<Self, candle_core::Error> {
        let moments = variables
            .map(|variable| {
                Ok(Moments {
                    mean: variable.zeros_like()?,
                    square: variable.zeros_like()?,
                })
            })
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self {
            moments,
            updates: 0,
        })
    }

    /// Moves every variable against its gradient.
    pub fn update<'a>(
        &mut self,
        variables: impl Iterator<Item = &'a Var> + Clone,
        gradients: &GradStore,
        learning_rate: f64,
    ) -> Result<(), candle_core::Error> {
        self.updates += 1;
        let factor = (MOST_NORM / norm(variables.clone(), gradients)?.max(MOST_NORM)).min(1.0);
        let corrected = |beta: f64| 1.0 - beta.powf(f64::from(self.updates));
        let (of_mean, of_square) = (corrected(BETA_1), corrected(BETA_2));
        for (variable, moments) in variables.zip(&mut self.moments) {
            let Some(gradient) = gradients.get(variable) else {
                continue;
            };
            let gradient = (gradient.detach() * factor)?;
            moments.mean = ((&moments.mean * BETA_1)? + (&gradient * (1.0 - BETA_1))?)?;
            moments.square = ((&moments.square * BETA_2)? + (gradient.sqr()? * (1.0 - BETA_2))?)?;
            let root = ((&moments.square / of_square)?.sqrt()? + EPS)?;
            let step = ((&moments.mean / of_mean)? / root)?;
            variable.set(&(variable.as_detached_tensor() - (step * learning_rate)?)?)?;
        }
        Ok(())
    }
}

fn norm<'a>(
    variables: impl Iterator<Item = &'a Var>,
    gradients: &GradStore,
) -> Result<f64, candle_core::Error> {
    let mut sum = 0.0;
    for gradient in variables.filter_map(|variable| gradients.get(variable)) {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_lowest_point_of_a_bowl_is_found() {
        let lowest = Tensor::new(&[1.5f32, -0.5, 3.0], &Device::Cpu).unwrap();
        let x = Var::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut adam = Adam::new([&x].into_iter()).unwrap();
        for step in 0..400 {
            let loss = (x.as_tensor() - &lowest)
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap();
            let gradients = loss.backward().unwrap();
            let rate = 0.1 * (1.0 - f64::from(step) / 400.0);
            adam.update([&x].into_iter(), &gradients, rate).unwrap();
        }
        let found = x.to_vec1::<f32>().unwrap();
        for (found, lowest) in found.iter().zip([1.5, -0.5, 3.0]) {
            assert!((found - lowest).abs() < 0.01, "{found} {lowest}");
        }
    }
}

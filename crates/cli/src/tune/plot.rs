//! A plot of losses, as SVG.

use std::fmt::Write;

const LEFT: f64 = 60.0;
const TOP: f64 = 30.0;
const WIDTH: f64 = 500.0;
const HEIGHT: f64 = 300.0;

/// The losses of steps, and of examples that were not learned from, over the steps.
pub fn svg(losses: &[(usize, f32)], held_out: &[(usize, f64)]) -> String {
    let losses: Vec<(usize, f64)> = losses
        .iter()
        .map(|&(step, loss)| (step, loss.into()))
        .collect();
    let all = || losses.iter().chain(held_out);
    let last = all().map(|&(step, _)| step).max().unwrap_or(0).max(1) as f64;
    let most = all().map(|&(_, loss)| loss).fold(0.0, f64::max).max(1e-6);
    let x = |step: f64| LEFT + WIDTH * step / last;
    let y = |loss: f64| TOP + HEIGHT * (1.0 - loss / most);
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 600 390\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"600\" height=\"390\" fill=\"#fff\"/>\n",
    );
    // Writing to a string cannot fail.
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let (step, loss) = (share * last, share * most);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step:.0}</text>",
            LEFT - 6.0,
            y(loss) + 4.0,
            x(step),
            TOP + HEIGHT + 18.0,
            y = y(loss),
        );
    }
    let mut line = |points: &[(usize, f64)], colour: &str, name: &str, at: f64| {
        let path: Vec<String> = points
            .iter()
            .map(|&(step, loss)| format!("{:.1},{:.1}", x(step as f64), y(loss)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>\
             <text x=\"{at}\" y=\"18\" fill=\"{colour}\">{name}</text>",
            path.join(" ")
        );
    };
    line(&losses, "#06c", "loss of each step", LEFT);
    if !held_out.is_empty() {
        line(held_out, "#c40", "held out", LEFT + 140.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">steps; nats a token</text>\n</svg>",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 40.0
    );
    out
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn losses_stand_where_they_belong() {
        let svg = svg(&[(1, 4.0), (2, 2.0)], &[(0, 4.0), (2, 1.0)]);
        assert!(svg.contains("points=\"310.0,30.0 560.0,180.0\""), "{svg}");
        assert!(svg.contains("points=\"60.0,30.0 560.0,255.0\""), "{svg}");
        assert!(svg.ends_with("</svg>\n"));
        assert!(!super::svg(&[], &[]).contains("NaN"));
    }
}

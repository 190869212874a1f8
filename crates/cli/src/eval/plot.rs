//! A plot of quality against bits, as SVG.

use std::fmt::Write;

/// A point of the plot.
pub struct Point {
    pub name: &'static str,
    pub bits_per_value: f64,
    /// Mean Kullback–Leibler divergence, in nats a token; 0 stands on the axis.
    pub kl: f64,
}

const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
/// Bits at the right end.
const MOST_BITS: f64 = 18.0;
/// Powers of ten at the bottom and the top.
const LOWEST: i32 = -8;
const HIGHEST: i32 = 0;

fn x(bits: f64) -> f64 {
    LEFT + WIDTH * (bits / MOST_BITS).clamp(0.0, 1.0)
}

fn y(kl: f64) -> f64 {
    let power = kl.max(1e-300).log10();
    let share = (power - f64::from(LOWEST)) / f64::from(HIGHEST - LOWEST);
    TOP + HEIGHT * (1.0 - share.clamp(0.0, 1.0))
}

/// The picture, complete.
pub fn svg(title: &str, points: &[Point]) -> String {
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 580 400\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"580\" height=\"400\" fill=\"#fff\"/>\n",
    );
    // Writing to a string cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>",
        escaped(title)
    ));
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    for bits in (0..=MOST_BITS as u32).step_by(2) {
        let x = x(f64::from(bits));
        line(format_args!(
            "<path d=\"M{x} {TOP}V{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{bits}</text>",
            bottom + 16.0
        ));
    }
    for power in LOWEST..=HIGHEST {
        let y = y(10_f64.powi(power));
        line(format_args!(
            "<path d=\"M{LEFT} {y}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">1e{power}</text>",
            LEFT - 6.0,
            y + 4.0
        ));
    }
    line(format_args!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">bits a value, all counted</text>",
        LEFT + WIDTH / 2.0,
        bottom + 36.0
    ));
    line(format_args!(
        "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">KL divergence, nats a token</text>",
        TOP + HEIGHT / 2.0
    ));
    for point in points {
        let (x, y) = (x(point.bits_per_value), y(point.kl));
        line(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#06c\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 8.0,
            y - 6.0,
            escaped(point.name)
        ));
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stand_where_their_figures_say() {
        let point = |name, bits_per_value, kl| Point {
            name,
            bits_per_value,
            kl,
        };
        let svg = svg(
            "a < b",
            &[point("int4", 4.5, 1e-4), point("hot", 16.0, 0.0)],
        );
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b"));
        // A quarter of the width, half of the height; exact values on the axis.
        assert!(svg.contains("cx=\"190.0\" cy=\"190.0\""), "{svg}");
        assert!(svg.contains("cy=\"340.0\""));
    }
}

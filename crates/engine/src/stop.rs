//! Stop strings in a stream of text pieces.

/// Finds the first of several stop strings, however the pieces cut them, and holds back only text
/// that may still become one.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopState {
    /// This text is certain; more may come.
    Continue(String),
    /// This text is certain, then the stop string of this index began.
    Stopped(String, usize),
}

impl StopMatcher {
    /// Empty stop strings are ignored: they would stop everything.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Adds a piece; gives what is certain.
    pub fn push(&mut self, piece: &str) -> StopState {
        if self.stops.is_empty() {
            return StopState::Continue(piece.to_owned());
        }
        self.held.push_str(piece);
        if let Some((start, which)) = self.first_match() {
            let before = self.held[..start].to_owned();
            self.held.clear();
            return StopState::Stopped(before, which);
        }
        let keep = self.longest_open_suffix();
        let certain = self.held.len() - keep;
        StopState::Continue(self.held.drain(..certain).collect())
    }

    /// The text still held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string at a given index of those that are not empty.
    pub fn stop(&self, which: usize) -> &str {
        &self.stops[which]
    }

    fn first_match(&self) -> Option<(usize, usize)> {
        let found =
            |(which, stop): (usize, &String)| self.held.find(stop.as_str()).map(|at| (at, which));
        self.stops.iter().enumerate().filter_map(found).min()
    }

    /// Length of the longest end of the held text with which some stop string begins.
    fn longest_open_suffix(&self) -> usize {
        let open = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.held.len());
            (1..=longest)
                .rev()
                .find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stops.iter().map(open).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                StopState::Continue(text) => out.push_str(&text),
                StopState::Stopped(text, which) => {
                    out.push_str(&text);
                    return (out, Some(matcher.stop(which).to_owned()));
                }
            }
        }
        out.push_str(&matcher.finish());
        (out, None)
    }

    #[test]
    fn finds_a_stop_string_cut_in_pieces() {
        assert_eq!(
            run(&["END"], &["abE", "N", "Dxyz"]),
            ("ab".into(), Some("END".into()))
        );
        assert_eq!(run(&["END"], &["abE", "NX", "D"]), ("abENXD".into(), None));
        assert_eq!(
            run(&["", "é!"], &["caf", "é", "!"]),
            ("caf".into(), Some("é!".into()))
        );
    }

    #[test]
    fn takes_the_earliest_of_several() {
        assert_eq!(
            run(&["bc", "ab"], &["xabc"]),
            ("x".into(), Some("ab".into()))
        );
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_in_the_whole_text(
            pieces in proptest::collection::vec("[abé]{0,4}", 0..12),
            stops in proptest::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let whole: String = pieces.concat();
            let expected = stops.iter().filter_map(|s| whole.find(s.as_str())).min();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (text, stopped) = run(&stops, &pieces);
            // A longer stop string that began earlier may still have been open when a shorter one
            // inside it was complete: the stream then stops at the shorter one.
            match expected {
                None => { prop_assert_eq!(text, whole); prop_assert!(stopped.is_none()); }
                Some(at) => {
                    prop_assert!(stopped.is_some());
                    prop_assert!(text.len() >= at);
                    let stop = stopped.unwrap();
                    let rest = whole.starts_with(&text) && whole[text.len()..].starts_with(&stop);
                    prop_assert!(rest);
                }
            }
        }
    }
}

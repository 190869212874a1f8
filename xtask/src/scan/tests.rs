use super::*;

fn code(source: &str) -> String {
    mask(source).code.join("\n")
}

#[test]
fn comments_and_strings_are_not_code() {
    let source = "let a = \"unsafe {\"; // unsafe\n/* unsafe /* nested */ still */ let b = 1;";
    let masked = code(source);
    assert!(!masked.contains("unsafe"), "{masked}");
    assert!(!masked.contains("still"));
    assert!(masked.contains("let b = 1;"));
    assert!(mask(source).comments[0].contains("unsafe"));
}

#[test]
fn raw_strings_end_at_their_hashes() {
    let masked = code("let a = r#\"say \"unsafe\" here\"#; let b = br\"x\\\"; let c = 2;");
    assert!(!masked.contains("unsafe"));
    assert!(masked.contains("let c = 2;"), "{masked}");
}

#[test]
fn escapes_do_not_end_a_string() {
    let masked = code("let a = \"x\\\"unsafe\"; let b = 1;");
    assert!(!masked.contains("unsafe"));
    assert!(masked.contains("let b"));
}

#[test]
fn quotes_of_characters_and_lifetimes_do_not_open_strings() {
    let masked = code("fn f<'a>(x: &'a str) { if c == '\"' { g('\\'') } } // end");
    assert!(masked.contains("} }"), "{masked}");
    assert!(!masked.contains("end"));
}

#[test]
fn masked_lines_keep_their_columns() {
    let source = "a /* b */ c\n\"d\" e";
    let masked = mask(source);
    assert_eq!(masked.code[0].find('c'), Some(10));
    assert_eq!(masked.code[1].find('e'), Some(4));
}

#[test]
fn functions_are_measured_from_signature_to_brace() {
    let source = "\
fn one(a: fn(u8) -> u8) {
    let x = '{';
}
impl T {
    fn two() -> [u8; 2]
    where
        T: Copy,
    {
        let inner = || { 3 };
    }
    fn declared(&self);
}
";
    let found = functions(&mask(source));
    let short: Vec<(&str, usize)> = found.iter().map(|f| (f.name.as_str(), f.lines())).collect();
    assert_eq!(short, [("one", 3), ("two", 6)]);
}

#[test]
fn nested_functions_are_found_too() {
    let source = "fn outer() {\n    fn inner() {\n    }\n}\n";
    let found = functions(&mask(source));
    assert_eq!(found.len(), 2);
    assert_eq!(found[1].lines(), 4);
}

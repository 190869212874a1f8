use super::*;

fn chat() -> Vec<ChatMessage> {
    vec![
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "Hi <b>there</b> & 'you'"),
    ]
}

#[test]
fn chatml_text() {
    let template = ChatTemplate::new(CHATML, "<s>", "</s>").unwrap();
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    assert_eq!(
        template.render(&chat(), &options).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>there</b> & 'you'<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

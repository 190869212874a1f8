//! Responses that can be gone on from: in RAM, charged to the budget, the oldest forgotten first.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use neap_memory::{Budget, Charge, ChargeKind};
use neap_model::chat::ChatMessage;
use serde_json::Value;

use crate::error::ApiError;
use crate::openai::answer::{Call, Choice};

/// Responses that are kept at most.
const MAX_KEPT: usize = 1024;
/// Bytes of all of them at most.
const MAX_BYTES: u64 = 16 << 20;

struct Kept {
    tenant: String,
    id: String,
    body: Value,
    /// The conversation up to and with the answer.
    messages: Vec<ChatMessage>,
    charge: Charge,
}

/// See the [module's description](self).
pub struct Store {
    budget: Budget,
    kept: Mutex<VecDeque<Kept>>,
}

impl Store {
    /// An empty store.
    pub fn new(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            kept: Mutex::default(),
        }
    }

    /// Keeps a response, if the budget has room: it is asked for last.
    pub fn keep(&self, tenant: &str, body: Value, mut messages: Vec<ChatMessage>, choice: &Choice) {
        let mut answer = ChatMessage::new("assistant", choice.text.as_str());
        if !choice.calls.is_empty() {
            let calls = choice.calls.iter().map(Call::to_json).collect();
            answer.fields.insert("tool_calls".into(), calls);
        }
        messages.push(answer);
        let said = serde_json::to_string(&messages).map_or(0, |text| text.len());
        // Values of JSON take some times their text.
        let bytes = 4 * (said + body.to_string().len() + tenant.len()) as u64;
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= MAX_KEPT
            || kept.iter().map(|k| k.charge.bytes()).sum::<u64>() + bytes > MAX_BYTES
        {
            if kept.pop_front().is_none() {
                return;
            }
        }
        let Ok(charge) = self.budget.try_charge(ChargeKind::Io, bytes) else {
            tracing::debug!(id, "no room to keep a response");
            return;
        };
        kept.push_back(Kept {
            tenant: tenant.to_owned(),
            id,
            body,
            messages,
            charge,
        });
    }

    fn find<T>(&self, tenant: &str, id: &str, of: impl Fn(&Kept) -> T) -> Result<T, ApiError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|k| k.tenant == tenant && k.id == id);
        found.map(of).ok_or_else(|| unknown(id))
    }

    /// The conversation up to and with a response.
    ///
    /// # Errors
    /// 400, for `previous_response_id`, where it is not kept.
    pub fn conversation(&self, tenant: &str, id: &str) -> Result<Vec<ChatMessage>, ApiError> {
        self.find(tenant, id, |kept| kept.messages.clone())
            .map_err(|why| {
                ApiError::field("previous_response_id", why.message)
                    .with_code("previous_response_not_found")
            })
    }

    /// A response as it was given.
    ///
    /// # Errors
    /// 404 where it is not kept.
    pub fn body(&self, tenant: &str, id: &str) -> Result<Value, ApiError> {
        self.find(tenant, id, |kept| kept.body.clone())
    }

    /// Forgets a response.
    ///
    /// # Errors
    /// 404 where it is not kept.
    pub fn delete(&self, tenant: &str, id: &str) -> Result<(), ApiError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|k| k.tenant == tenant && k.id == id);
        kept.remove(at.ok_or_else(|| unknown(id))?);
        Ok(())
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!(
        "the response {id:?} is not kept here: it was made with `store: false`, is old, or another's"
    ))
    .with_code("response_not_found")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keep(store: &Store, tenant: &str, id: &str, text: &str) {
        let choice = Choice {
            text: text.into(),
            ..Choice::default()
        };
        let messages = vec![ChatMessage::new("user", "hi")];
        store.keep(tenant, json!({"id": id}), messages, &choice);
    }

    #[test]
    fn responses_are_found_by_whoever_asked_only() {
        let store = Store::new(&Budget::new(1 << 20));
        keep(&store, "a", "r", "hello");
        assert_eq!(store.conversation("a", "r").unwrap()[1].content, "hello");
        assert_eq!(store.body("a", "r").unwrap()["id"], "r");
        assert!(store.body("b", "r").is_err() && store.delete("b", "r").is_err());
        let error = store.conversation("b", "r").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
        store.delete("a", "r").unwrap();
        assert!(store.body("a", "r").is_err());
    }

    #[test]
    fn the_budget_bounds_what_is_kept() {
        let budget = Budget::new(20_000);
        let store = Store::new(&budget);
        for i in 0..10 {
            keep(&store, "a", &i.to_string(), &"x".repeat(1000));
        }
        assert!(budget.charged() > 0 && budget.charged() <= budget.limit());
        assert!(store.body("a", "0").is_ok() && store.body("a", "9").is_err());
        store.delete("a", "0").unwrap();
        let large = Store::new(&Budget::new(1 << 40));
        for i in 0..5 {
            keep(&large, "a", &i.to_string(), &"x".repeat(1 << 20));
        }
        assert!(large.body("a", "0").is_err() && large.body("a", "4").is_ok());
    }
}

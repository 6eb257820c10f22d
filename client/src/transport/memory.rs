//! Answers from memory, for tests: a script is a function from requests to answers.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::{Failure, PullRequest, Transport};
use crate::page::Page;
use crate::token::Token;

/// One answer of a script.
#[derive(Debug)]
pub enum Answer {
    /// The text of a page, decoded and checked as if it had come over a network.
    Page(String),
    /// A failure.
    Fail(Failure),
    /// No answer for ever: a held long poll.
    Hold,
}

/// A transport that plays a list of answers and keeps a list of what it was asked.
#[derive(Clone, Debug, Default)]
pub struct Script {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<(PullRequest, String)>>,
    collections: Mutex<Vec<String>>,
    more: Notify,
}

impl Script {
    /// A script of `answers` for a token that may see `collections`. When the answers are used up,
    /// pulls are held until there are more.
    #[must_use]
    pub fn new(collections: &[&str], answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Self::default();
        *lock(&script.inner.collections) = collections.iter().map(|s| (*s).to_owned()).collect();
        lock(&script.inner.answers).extend(answers);
        script
    }

    /// Adds an answer.
    pub fn push(&self, answer: Answer) {
        lock(&self.inner.answers).push_back(answer);
        self.inner.more.notify_one();
    }

    /// Everything that was asked so far, each with the token's text.
    #[must_use]
    pub fn asked(&self) -> Vec<(PullRequest, String)> {
        lock(&self.inner.asked).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport for Script {
    fn pull(
        &self,
        request: PullRequest,
        token: Token,
    ) -> impl Future<Output = Result<Page, Failure>> + Send + 'static {
        let inner = Arc::clone(&self.inner);
        lock(&inner.asked).push((request, token.reveal().to_owned()));
        async move {
            let answer = loop {
                let more = inner.more.notified();
                let next = lock(&inner.answers).pop_front();
                match next {
                    Some(answer) => break answer,
                    None => more.await,
                }
            };
            match answer {
                Answer::Page(text) => {
                    Page::decode(text).map_err(|error| Failure::Garbage(error.to_string()))
                }
                Answer::Fail(failure) => Err(failure),
                Answer::Hold => std::future::pending().await,
            }
        }
    }

    fn collections(
        &self,
        _token: Token,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send + 'static {
        std::future::ready(Ok(lock(&self.inner.collections).clone()))
    }
}

//! Calls Nomad's HTTP API. Every failure says whom it asked and what to do next.

use anyhow::{Context, Result, bail};
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::time::Duration;

/// A response larger than this is not one of ours.
const BODY_MAX: u64 = 64 << 20;

/// Where to ask.
#[derive(Args, Clone, Debug)]
pub struct Endpoint {
    /// The HTTP address of a server or agent [env: MESHCTL_ADDR, then NOMAD_ADDR] [default: http://127.0.0.1:4646]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    address: Option<String>,
}

impl Endpoint {
    pub fn url(&self) -> String {
        let from_environment = || std::env::var("MESHCTL_ADDR").or_else(|_| std::env::var("NOMAD_ADDR")).ok();
        let address = self.address.clone().or_else(from_environment);
        address.unwrap_or_else(|| "http://127.0.0.1:4646".to_owned()).trim_end_matches('/').to_owned()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        read_json(path, self.open(path)?)
    }

    /// The body as it comes, for logs.
    pub fn open(&self, path: &str) -> Result<Box<dyn Read>> {
        let url = format!("{}{path}", self.url());
        refuse_tls(&url)?;
        let response = agent().get(&url).call().with_context(|| unreachable_text(&self.url()))?;
        checked(response)
    }

    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let url = format!("{}{path}", self.url());
        refuse_tls(&url)?;
        let body = serde_json::to_vec(body).context("could not write the request")?;
        let response = agent().put(&url).send(&body[..]).with_context(|| unreachable_text(&self.url()))?;
        read_json(path, checked(response)?)
    }

    /// A body that is no JSON.
    pub fn put_bytes<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T> {
        let url = format!("{}{path}", self.url());
        refuse_tls(&url)?;
        let response = agent().put(&url).send(body).with_context(|| unreachable_text(&self.url()))?;
        read_json(path, checked(response)?)
    }

    /// For what answers nothing.
    pub fn delete_silently(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.url());
        refuse_tls(&url)?;
        let response = agent().delete(&url).call().with_context(|| unreachable_text(&self.url()))?;
        checked(response).map(drop)
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.url());
        refuse_tls(&url)?;
        let response = agent().delete(&url).call().with_context(|| unreachable_text(&self.url()))?;
        read_json(path, checked(response)?)
    }
}

/// A name or id as one part of a path or query: nothing in it can be taken for the URL's own punctuation.
pub fn part(text: &str) -> PercentEncode<'_> {
    const PUNCTUATION: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, PUNCTUATION)
}

fn agent() -> ureq::Agent {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_connect(Some(Duration::from_secs(5)));
    config.build().into()
}

fn refuse_tls(url: &str) -> Result<()> {
    if url.starts_with("https://") {
        bail!("{url}: TLS for HTTP is not built yet; run this on a server and use http://127.0.0.1:4646");
    }
    Ok(())
}

fn unreachable_text(url: &str) -> String {
    format!("could not reach {url}: is a server or agent running there? (-address or MESHCTL_ADDR names another)")
}

/// The API's errors are plain text with a status that says whose fault it is.
fn checked(response: ureq::http::Response<ureq::Body>) -> Result<Box<dyn Read>> {
    let status = response.status();
    let mut body = response.into_body();
    if status.is_success() {
        return Ok(Box::new(body.into_reader()));
    }
    let text = body.read_to_string().unwrap_or_default();
    bail!("{} ({status})", text.trim())
}

fn read_json<T: DeserializeOwned>(path: &str, body: Box<dyn Read>) -> Result<T> {
    serde_json::from_reader(body.take(BODY_MAX))
        .with_context(|| format!("the answer to {path} is not what was expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_cannot_become_path_or_query() {
        assert_eq!(part("web?purge=true#/a").to_string(), "web%3Fpurge%3Dtrue%23%2Fa");
        assert_eq!(part("web-1.2_~").to_string(), "web-1.2_~");
    }
}

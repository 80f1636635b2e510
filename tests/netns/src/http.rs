//! The least of an HTTP/1.1 client over std sockets, for threads that live inside a namespace.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One connection, kept alive between requests.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Connection {
    pub fn open(address: SocketAddr, limit: Duration) -> std::io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        Self::over(stream, limit)
    }

    /// Takes a connected stream.
    pub fn over(stream: TcpStream, limit: Duration) -> std::io::Result<Connection> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Connection { reader: BufReader::new(stream) })
    }

    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.request("GET", path, "")
    }

    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Response> {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: {length}\r\n\r\n");
        self.reader.get_mut().write_all(format!("{head}{body}").as_bytes()).context("could not send the request")?;
        self.response()
    }

    fn response(&mut self) -> Result<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not a status line: {status_line:?}"))?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        Ok(Response { status, body: self.body(length)? })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("could not read the response")? == 0 {
            bail!("the connection was closed before the response");
        }
        Ok(line.trim_end().to_owned())
    }

    fn body(&mut self, length: Option<usize>) -> Result<String> {
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.reader.read_exact(&mut body).context("the body ended early")?;
            }
            None => {
                self.reader.read_to_end(&mut body).context("the body ended early")?;
            }
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

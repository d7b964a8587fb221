//! One keep-alive connection of the load generator: HTTP/1.1 with reused buffers, so that what is
//! measured is the server. One request at a time; responses are read whole, however they are framed.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head of a response, in bytes; more is no answer that a benchmark expects.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most headers of a response.
const MAX_HEADERS: usize = 64;

/// A connection to a server; opened again when the server closes it between two responses.
#[derive(Debug)]
pub(super) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    received: Vec<u8>,
    body: Vec<u8>,
}

/// How the end of a response's body is told.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

/// The head of a response.
#[derive(Debug)]
struct Head {
    status: u16,
    bytes: usize,
    framing: Framing,
    keep_alive: bool,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let mut connection = Self {
            address,
            stream: None,
            received: Vec::with_capacity(8 * 1024),
            body: Vec::with_capacity(1024),
        };
        connection.stream = Some(connect(address).await?);
        Ok(connection)
    }

    /// Sends a request and reads its response: the status. The body is in [`Connection::body`]
    /// until the next exchange. After an error the next exchange takes a new connection.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).await?,
        };
        stream.write_all(request).await?;
        let (status, keep_alive) = self.read_response(&mut stream).await?;
        if keep_alive {
            self.stream = Some(stream);
        }
        Ok(status)
    }

    /// The body of the last response.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    async fn read_response(&mut self, stream: &mut TcpStream) -> Result<(u16, bool)> {
        self.received.clear();
        self.body.clear();
        let head = loop {
            match parse_head(&self.received)? {
                // 100 Continue and its like come before the response.
                Some(head) if head.status < 200 => {
                    self.received.drain(..head.bytes);
                }
                Some(head) => break head,
                None if self.received.len() > MAX_HEAD_BYTES => {
                    return Err(invalid("the head of the response is too long"));
                }
                None => self.more(stream).await?,
            }
        };
        let used = match head.framing {
            Framing::Length(length) => {
                let end = head.bytes + length;
                while self.received.len() < end {
                    self.more(stream).await?;
                }
                self.body.extend_from_slice(&self.received[head.bytes..end]);
                end
            }
            Framing::Chunked => self.read_chunks(stream, head.bytes).await?,
            Framing::Close => {
                stream.read_to_end(&mut self.received).await?;
                self.body.extend_from_slice(&self.received[head.bytes..]);
                self.received.len()
            }
        };
        if used != self.received.len() {
            return Err(invalid("the server sent more than the response"));
        }
        Ok((head.status, head.keep_alive))
    }

    /// Reads a chunked body that begins at `at`; gives back where it ends.
    async fn read_chunks(&mut self, stream: &mut TcpStream, mut at: usize) -> Result<usize> {
        loop {
            let (size_bytes, length) = loop {
                match httparse::parse_chunk_size(&self.received[at..]) {
                    Ok(httparse::Status::Complete((bytes, length))) => {
                        let length = usize::try_from(length)
                            .ok()
                            .filter(|&length| length <= isize::MAX as usize / 2);
                        break (bytes, length.ok_or_else(|| invalid("a chunk is too long"))?);
                    }
                    Ok(httparse::Status::Partial) => self.more(stream).await?,
                    Err(_) => return Err(invalid("the size of a chunk is no number")),
                }
            };
            at += size_bytes;
            if length == 0 {
                return self.skip_trailers(stream, at).await;
            }
            while self.received.len() < at + length + 2 {
                self.more(stream).await?;
            }
            self.body.extend_from_slice(&self.received[at..at + length]);
            at += length;
            if &self.received[at..at + 2] != b"\r\n" {
                return Err(invalid("a chunk is longer than it says"));
            }
            at += 2;
        }
    }

    /// Skips the lines after the last chunk, up to the empty one.
    async fn skip_trailers(&mut self, stream: &mut TcpStream, mut at: usize) -> Result<usize> {
        loop {
            let line = self.received[at..]
                .windows(2)
                .position(|pair| pair == b"\r\n");
            match line {
                Some(length) => {
                    at += length + 2;
                    if length == 0 {
                        return Ok(at);
                    }
                }
                None => self.more(stream).await?,
            }
        }
    }

    async fn more(&mut self, stream: &mut TcpStream) -> Result<()> {
        match stream.read_buf(&mut self.received).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// The head at the start of `received`; `None` until it is whole.
fn parse_head(received: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let bytes = match response.parse(received) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(invalid(&format!("this is no HTTP response: {error}"))),
    };
    let status = response.code.unwrap_or(0);
    let mut framing = match status {
        100..=199 | 204 | 304 => Framing::Length(0),
        _ => Framing::Close,
    };
    let has_body = framing == Framing::Close;
    let mut keep_alive = response.version == Some(1);
    for header in response.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") && has_body && framing != Framing::Chunked {
            let length = std::str::from_utf8(header.value)
                .ok()
                .and_then(|text| text.trim().parse::<usize>().ok())
                .filter(|&length| length <= isize::MAX as usize / 2);
            framing =
                Framing::Length(length.ok_or_else(|| invalid("content-length is no number"))?);
        } else if is("transfer-encoding") && has_body {
            framing = Framing::Chunked;
        } else if is("connection") {
            let asks = |word: &str| header.value.eq_ignore_ascii_case(word.as_bytes());
            keep_alive = if asks("close") {
                false
            } else {
                keep_alive || asks("keep-alive")
            };
        }
    }
    keep_alive &= framing != Framing::Close;
    Ok(Some(Head {
        status,
        bytes,
        framing,
        keep_alive,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// What a client reads of a server that sends `parts`, each in a packet of its own.
    fn answers(parts: &'static [&'static [u8]], exchanges: usize) -> Vec<Result<(u16, String)>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                stream.set_nodelay(true).unwrap();
                for part in parts {
                    if part.is_empty() {
                        let _ = stream.read(&mut request).await.unwrap();
                    } else {
                        stream.write_all(part).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            });
            let mut connection = Connection::open(address).await.unwrap();
            let mut answers = Vec::new();
            for _ in 0..exchanges {
                let status = connection.exchange(b"POST / HTTP/1.1\r\n\r\n").await;
                let body = String::from_utf8(connection.body().to_vec()).unwrap();
                answers.push(status.map(|status| (status, body)));
            }
            server.await.unwrap();
            answers
        })
    }

    fn read(answer: &Result<(u16, String)>) -> (u16, &str) {
        let (status, body) = answer.as_ref().unwrap();
        (*status, body)
    }

    #[test]
    fn bodies_end_where_their_length_says() {
        let answers = answers(
            &[
                b"",
                b"HTTP/1.1 200 OK\r\nContent-Le",
                b"ngth: 2\r\n\r\n4",
                b"2",
                b"",
                b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
            ],
            2,
        );
        assert_eq!(read(&answers[0]), (200, "42"));
        assert_eq!(read(&answers[1]), (503, ""));
    }

    #[test]
    fn chunks_are_put_together_and_trailers_skipped() {
        let answers = answers(
            &[
                b"",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1",
                b"\r\n4\r",
                b"\n2\r\n23\r\n0\r\nx: y\r\n\r\n",
                b"",
                b"HTTP/1.1 204 Empty\r\n\r\n",
            ],
            2,
        );
        assert_eq!(read(&answers[0]), (200, "423"));
        assert_eq!(read(&answers[1]), (204, ""));
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let answers = answers(&[b"", b"HTTP/1.1 200 OK\r\n\r\n42"], 1);
        assert_eq!(read(&answers[0]), (200, "42"));
    }

    #[test]
    fn broken_answers_are_errors() {
        const BROKEN: [&[&[u8]]; 5] = [
            &[
                b"",
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n42\r\n0\r\n\r\n",
            ],
            &[b"", b"SSH-2.0-x\r\n\r\n"],
            &[b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n42"],
            &[b"", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n42"],
            &[b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n42"],
        ];
        for parts in BROKEN {
            assert!(answers(parts, 1)[0].is_err(), "{parts:?}");
        }
    }
}

//! The smallest program that can be a function: answers a request with its body. For benchmarks.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;

fn main() -> std::io::Result<()> {
    let path = std::env::var_os("FULMAR_SOCKET");
    let path = path.ok_or_else(|| std::io::Error::other("FULMAR_SOCKET is not set"))?;
    let (mut connection, _) = UnixListener::bind(path)?.accept()?;
    let mut requests = BufReader::new(connection.try_clone()?);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let header = line.split_once(':');
            let is_length = header.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            length = is_length
                .map_or(Ok(length), |(_, value)| value.trim().parse())
                .map_err(std::io::Error::other)?;
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body)?;
        write!(
            connection,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
        )?;
        connection.write_all(&body)?;
    }
}

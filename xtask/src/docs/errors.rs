//! `docs/errors.md`: the catalogue of problem codes.

use fulmar_model::Code;
use fulmar_model::problem::{CONTENT_TYPE, TYPE_BASE};

pub(super) fn page() -> String {
    let mut text = format!(
        "# Errors

A node answers every failed request with `{CONTENT_TYPE}` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)):

```json
{{
  \"type\": \"{TYPE_BASE}function-not-found\",
  \"title\": \"No such function\",
  \"status\": 404,
  \"detail\": \"no function \\\"conter\\\" is deployed\",
  \"code\": \"function-not-found\",
  \"fix\": \"Check the name with `fulmar functions ls`, or deploy it with `fulmar deploy`.\"
}}
```

Programs should look at `code` alone: its meaning never changes. `title` belongs to the code, `detail` tells what
happened this time, `fix` what to do. Where it says that nothing was kept, neither writes to state nor messages
of the invocation took effect, so that it can be repeated.

| code | status | what it is |
|---|---|---|
"
    );
    for code in Code::ALL {
        text += &format!(
            "| [`{code}`](#{code}) | {} | {} |\n",
            code.status(),
            code.title()
        );
    }
    for code in Code::ALL {
        text += &format!(
            "\n## {code}\n\n**{} {}.** {}\n\n*What to do:* {}\n",
            code.status(),
            code.title(),
            code.explanation(),
            code.fix()
        );
    }
    text
}

//! The attribute `#[fulmar::function]`: makes a function the component's handler.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, Result, ReturnType, Type};

/// Makes a function the handler of this component: one in a component.
///
/// It takes a `fulmar::Context`, an input, both (in this order) or nothing, and returns `Result<R, E>`.
/// An input is `Vec<u8>`, `&[u8]`, `String`, `&str`, `fulmar::Raw` or `fulmar::Json<T>`; so is `R`,
/// which may also be `()`. `E` is `fulmar::Error` or any `std::error::Error`.
#[proc_macro_attribute]
pub fn function(
    arguments: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let item = TokenStream::from(item);
    match handler(arguments.into(), item.clone()) {
        Ok(handler) => quote!(#item #handler),
        // The function stays, so that there are no further errors about its absence.
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#item #error)
        }
    }
    .into()
}

/// The component's export, which calls the function.
fn handler(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let refuse = |what: &dyn Spanned, why: &str| Err(Error::new(what.span(), why));
    let Ok(function) = syn::parse2::<ItemFn>(item.clone()) else {
        return refuse(&item, "#[fulmar::function] belongs on a function");
    };
    let signature = &function.sig;
    if !arguments.is_empty() {
        return refuse(&arguments, "#[fulmar::function] takes no arguments");
    }
    if let Some(word) = &signature.asyncness {
        return refuse(word, "a function of Fulmar is not async: remove `async`");
    }
    if let Some(word) = &signature.unsafety {
        return refuse(word, "a function of Fulmar is not unsafe: remove `unsafe`");
    }
    if signature.generics.type_params().next().is_some()
        || signature.generics.const_params().next().is_some()
    {
        return refuse(
            &signature.generics,
            "a function of Fulmar has no type parameters: say which types it takes",
        );
    }
    let ReturnType::Type(_, output) = &signature.output else {
        return refuse(
            &signature.ident,
            "a function of Fulmar returns a result: add `-> Result<(), fulmar::Error>`",
        );
    };
    let types: Vec<&Type> = signature
        .inputs
        .iter()
        .map(|input| match input {
            FnArg::Typed(typed) => Ok(&*typed.ty),
            FnArg::Receiver(receiver) => Err(Error::new(
                receiver.span(),
                "a function of Fulmar is not a method: remove `self`",
            )),
        })
        .collect::<Result<_>>()?;

    let name = &signature.ident;
    let call = match types[..] {
        [] => quote!(#name()),
        [input] => {
            let input = read(input);
            quote!(#name(#input))
        }
        [context, input] => {
            let borrow = matches!(context, Type::Reference(_)).then(|| quote!(&));
            let context = quote_spanned!(context.span()=> #borrow ::fulmar::context());
            let input = read(input);
            quote!(#name(#context, #input))
        }
        [_, _, ref third @ ..] => {
            return refuse(
                &third[0],
                "a function of Fulmar takes at most a `fulmar::Context` and an input; put several values into one struct and take `fulmar::Json<Struct>`",
            );
        }
    };
    // Errors about the answer's type point to it.
    let answer = quote_spanned! {output.span()=>
        let result = #call;
        ::fulmar::Output::write(::fulmar::__private::Answer::answer(result)?)
    };
    Ok(quote! {
        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types)]
        struct a_component_has_one_fulmar_function;

        #[allow(unsafe_code)]
        const _: () = {
            struct Function;

            impl ::fulmar::bindings::Guest for Function {
                fn handle(
                    body: ::std::vec::Vec<u8>,
                ) -> ::std::result::Result<::std::vec::Vec<u8>, ::fulmar::bindings::Failure> {
                    #[allow(unused_mut, unused_variables)]
                    let mut body = body;
                    ::fulmar::__private::run(|| { #answer })
                }
            }

            ::fulmar::bindings::export!(Function with_types_in ::fulmar::bindings);
        };
    })
}

/// Reads the body as a type, at whose place errors point.
fn read(input: &Type) -> TokenStream {
    quote_spanned!(input.span()=> ::fulmar::Input::read(&mut body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: TokenStream) -> String {
        handler(TokenStream::new(), item).unwrap_err().to_string()
    }

    #[test]
    fn wrong_signatures_are_refused_with_what_to_do() {
        let cases = [
            (
                quote!(
                    struct Handler;
                ),
                "belongs on a function",
            ),
            (
                quote!(
                    async fn handle() -> Result<(), Error> {}
                ),
                "remove `async`",
            ),
            (
                quote!(
                    unsafe fn handle() -> Result<(), Error> {}
                ),
                "remove `unsafe`",
            ),
            (
                quote!(
                    fn handle<T>(input: T) -> Result<(), Error> {}
                ),
                "no type parameters",
            ),
            (
                quote!(
                    fn handle(input: String) {}
                ),
                "add `-> Result<(), fulmar::Error>`",
            ),
            (
                quote!(
                    fn handle(&self) -> Result<(), Error> {}
                ),
                "remove `self`",
            ),
            (
                quote!(
                    fn handle(a: Context, b: String, c: String) -> Result<(), Error> {}
                ),
                "put several values into one struct",
            ),
        ];
        for (item, expected) in cases {
            let refused = refusal(item.clone());
            assert!(refused.contains(expected), "{item}: {refused}");
        }
        let item = quote!(
            fn handle() -> Result<(), Error> {}
        );
        let refused = handler(quote!(name = "x"), item).unwrap_err().to_string();
        assert!(refused.contains("takes no arguments"), "{refused}");
    }

    #[test]
    fn context_and_input_are_optional() {
        for item in [
            quote!(
                fn handle() -> Result<(), Error> {}
            ),
            quote!(
                fn handle(input: &str) -> Result<(), Error> {}
            ),
            quote!(
                fn handle(context: Context) -> Result<(), Error> {}
            ),
            quote!(
                fn handle(context: &Context, input: Json<Order>) -> Result<(), Error> {}
            ),
            quote!(
                fn handle<'a>(context: Context, input: &'a [u8]) -> Result<(), Error> {}
            ),
        ] {
            assert!(handler(TokenStream::new(), item.clone()).is_ok(), "{item}");
        }
    }
}

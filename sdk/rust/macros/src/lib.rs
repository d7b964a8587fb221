//! The attribute `#[fulmar::function]`: makes a function the component's handler.

use proc_macro::TokenStream;
use proc_macro2::Span;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, ItemFn, ReturnType, parse_macro_input};

/// Makes a function the handler of this component.
///
/// It takes nothing or one input (`Vec<u8>`, `String` or `fulmar::Json<T>`) and returns
/// `Result<R, fulmar::Error>`, where `R` is one of these or `()`.
#[proc_macro_attribute]
pub fn function(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    let mistake = |span: Span, text: &str| -> TokenStream { quote_spanned!(span => compile_error!(#text);).into() };
    if !arguments.is_empty() {
        return mistake(function.sig.span(), "#[fulmar::function] takes no arguments");
    }
    if function.sig.asyncness.is_some() {
        return mistake(function.sig.asyncness.span(), "a function of Fulmar is not async: remove `async`");
    }
    if !function.sig.generics.params.is_empty() {
        return mistake(function.sig.generics.span(), "a function of Fulmar has no type parameters");
    }
    if matches!(function.sig.output, ReturnType::Default) {
        return mistake(function.sig.span(), "a function of Fulmar returns Result<T, fulmar::Error>");
    }
    let name = &function.sig.ident;
    let call = match function.sig.inputs.len() {
        0 => quote!(#name()),
        1 => match &function.sig.inputs[0] {
            FnArg::Typed(_) => quote!(#name(::fulmar::Input::read(input)?)),
            FnArg::Receiver(receiver) => return mistake(receiver.span(), "a function of Fulmar is not a method"),
        },
        _ => {
            return mistake(
                function.sig.inputs.span(),
                "a function of Fulmar takes at most one input; ask fulmar::context() for session and key",
            );
        }
    };
    quote! {
        #function

        #[doc(hidden)]
        struct __FulmarFunction;

        impl ::fulmar::bindings::Guest for __FulmarFunction {
            fn handle(
                input: ::std::vec::Vec<u8>,
            ) -> ::std::result::Result<::std::vec::Vec<u8>, ::fulmar::bindings::Failure> {
                ::fulmar::run(|| {
                    let _ = &input;
                    ::fulmar::Output::write(#call?)
                })
            }
        }

        ::fulmar::bindings::export!(__FulmarFunction with_types_in ::fulmar::bindings);
    }
    .into()
}

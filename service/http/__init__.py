"""HTTP: parse and validate requests, run operations, build responses.

    context         the facts about a request that middleware and handlers share
    headers         the parsed header fields of a request
    negotiation     the representation that the client prefers
    urls            absolute links; the maximum length of a path
    parsing         strict parsers of JSON bodies and of query strings
    schemas         the base of input schemas, and the types of their fields
    requests        validation of requests: parameters, body, ids in the path
    responses       responses made from bytes, entity tags, Vary
    error_handler   conversion of exceptions to error responses
    pagination      pages and cursors
    priority        which routes are refused first under overload
    cors            cross-origin requests
    auth            authentication and authorisation: the user of a request
    documentation   decorators that declare the statuses of a route for the OpenAPI document
    call            the request object that a handler receives
    operations      routes whose handlers do not depend on a framework
    quart_app       Quart, optimised for complete requests
    additions       hooks and middleware that other code adds to the application

A handler of an operation takes a `Call` and the arguments that its decorators add (path values,
query, body, user). It returns a `Reply`. Two callers run the same handler: the Quart view that
`operation` makes, and the direct path, which bypasses Quart's request cycle. Both run the same
decorators in the same order, and both send the same `RawResponse`.
"""

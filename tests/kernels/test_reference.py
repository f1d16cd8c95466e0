def test_x(tiny_model, tiny_tokenizer, forget_rows):
    m = tiny_model()
    print(
        sum(p.numel() for p in m.parameters()),
        len(tiny_tokenizer),
        tiny_tokenizer(forget_rows[2]["completion"]),
        forget_rows[2],
    )
    print([(n, p.shape) for n, p in m.named_parameters()])
    print(tiny_tokenizer.decode(tiny_tokenizer("Tromsø </s>")["input_ids"]))
    print(tiny_model(dtype=__import__("torch").bfloat16).config.dtype)

/* Chat templates: what each known one renders, against golden renderings and against their own rules. */
#include "support/vocabulary.h"

#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "fovea/model.h"
#include "models/chat.h"

/* A tokenizer with begin <s> (added by itself or not) and end </s>. */
static fv_tokenizer *tiny(bool adds_begin)
{
    test_vocabulary v = {0};
    gguf_writer w = {0};
    fv_tokenizer *t;

    test_byte_pieces(&v);
    gguf_put_string(&w, "tokenizer.ggml.model", "llama");
    gguf_put_u32(&w, "tokenizer.ggml.bos_token_id", (uint32_t)test_piece(&v, "<s>", 0, 3));
    gguf_put_u32(&w, "tokenizer.ggml.eos_token_id", (uint32_t)test_piece(&v, "</s>", 0, 3));
    gguf_put_bool(&w, "tokenizer.ggml.add_bos_token", adds_begin);
    test_put_vocabulary(&w, &v);
    assert_ok(test_read_tokenizer(&w, &t));
    return t;
}

static fv_gguf_text words(const char *text)
{
    return (fv_gguf_text){text, (int64_t)strlen(text)};
}

static void check(const fv_tokenizer *t, const char *jinja, const char *system, const char *user, const char *expected)
{
    char *text;
    size_t length, user_at;

    assert_ok(fv_chat_render("test.gguf", words(jinja), t, system, user, &text, &length, &user_at));
    assert_string_equal(text, expected);
    assert_int_equal(length, strlen(expected));
    user += strspn(user, " ");
    size_t shared = strcspn(user, " "); /* the first word is there whether the template trims or not */
    size_t spaces = strspn(text + user_at, " ");
    assert_memory_equal(text + user_at + spaces, user, shared);
    fv_free(text);
}

/* ---- golden ----------------------------------------------------------------------------------------------------- */

/* Templates as their models carry them, cut to what matters. */
static const struct {
    const char *golden, *jinja;
} known[] = {
    {"chatml",
     "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
     "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"},
    {"llama2-sys", "{% if message['role'] == 'user' %}{{ '[INST] ' + content + ' [/INST]' }}{% endif %}"
                   "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"},
    {"llama3",
     "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
     "+ '<|eot_id|>' %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"},
    {"gemma", "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
              "{{'<start_of_turn>model\n'}}"},
    {"mistral-v1", "{%- if loop.first and system_message is defined %}{{- ' [INST] ' + system_message + '\\n\\n' + "
                   "message['content'] + ' [/INST]' }}{%- endif %}"},
    {"mistral-v3", "{{- '[AVAILABLE_TOOLS] [' }}{{- '[INST] ' + message['content'] + '[/INST]' }}"},
    {"zephyr", "{{ '<|user|>\n' + message['content'] + '<|endoftext|>\n' }}{{ '<|assistant|>\n' }}"},
    {"phi3",
     "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}<|user|>{{ '<|assistant|>\n' }}"},
};

static const char *content(json_t *messages, size_t index)
{
    return json_string_value(json_object_get(json_array_get(messages, index), "content"));
}

static void test_known_templates_render_as_llama_cpp(void **state)
{
    json_t *golden = test_golden("templates"), *rows = json_object_get(golden, "templates"), *row;
    fv_tokenizer *t = tiny(true);
    size_t index, checked = 0;

    (void)state;
    json_array_foreach(rows, index, row)
    {
        json_t *messages = json_object_get(row, "messages");
        size_t count = json_array_size(messages);
        const char *role = json_string_value(json_object_get(json_array_get(messages, 0), "role"));
        bool has_system = strcmp(role, "system") == 0;
        if (count > 1u + has_system) continue; /* we render one turn */
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            if (strcmp(known[k].golden, json_string_value(json_object_get(row, "template"))) != 0) continue;
            check(t, known[k].jinja, has_system ? content(messages, 0) : NULL, content(messages, has_system),
                  json_string_value(json_object_get(row, "text")));
            checked++;
        }
    }
    assert_int_equal(checked, 2 * sizeof known / sizeof *known);
    fv_tokenizer_free(t);
    json_decref(golden);
}

static void test_smollm2_renders_as_its_own_template(void **state)
{
    const char *path = test_model_path(test_models[0][1]);
    json_t *golden, *row;
    fv_gguf_text jinja = {0};
    fv_tokenizer *t;
    fv_gguf *gguf;
    size_t index;

    (void)state;
    if (!path) return;
    golden = test_golden("smollm2");
    assert_ok(fv_gguf_open(path, &gguf));
    assert_ok(fv_tokenizer_new(gguf, &t));
    assert_ok(fv_gguf_string(gguf, "tokenizer.chat_template", &jinja));
    assert_true(json_array_size(json_object_get(golden, "chat")) >= 4);
    json_array_foreach(json_object_get(golden, "chat"), index, row)
    {
        const char *user = json_string_value(json_object_get(row, "user"));
        json_t *ids_expected = json_object_get(row, "ids");
        char *text;
        size_t length, user_at;
        int32_t *ids;
        int64_t count;
        assert_ok(fv_chat_render(path, jinja, t, json_string_value(json_object_get(row, "system")), user, &text,
                                 &length, &user_at));
        assert_string_equal(text, json_string_value(json_object_get(row, "text")));
        assert_memory_equal(text + user_at, user, strlen(user));
        assert_ok(fv_tokenizer_encode(t, text, length, FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL, &ids, NULL, &count));
        assert_int_equal(count, json_array_size(ids_expected));
        for (int64_t i = 0; i < count; i++)
            assert_int_equal(ids[i], json_integer_value(json_array_get(ids_expected, (size_t)i)));
        fv_free(ids);
        fv_free(text);
    }
    fv_tokenizer_free(t);
    fv_gguf_close(gguf);
    json_decref(golden);
}

/* Conversations: the first turn, the answer as it was generated, the next turn. */
static void test_further_turns_render_as_llama_cpp(void **state)
{
    json_t *golden = test_golden("templates"), *rows = json_object_get(golden, "templates"), *row;
    fv_tokenizer *t = tiny(true);
    size_t index, checked = 0;

    (void)state;
    json_array_foreach(rows, index, row)
    {
        json_t *messages = json_object_get(row, "messages");
        const char *name = json_string_value(json_object_get(row, "template"));
        const char *role = json_string_value(json_object_get(json_array_get(messages, 0), "role"));
        bool has_system = strcmp(role, "system") == 0, mistral = strncmp(name, "mistral", 7) == 0;
        if (json_array_size(messages) != 3u + has_system) continue;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            fv_text all = {0};
            char *first, *next;
            size_t length, user_at;
            if (strcmp(known[k].golden, name) != 0) continue;
            fv_gguf_text jinja = words(known[k].jinja);
            assert_ok(fv_chat_render("test.gguf", jinja, t, has_system ? content(messages, 0) : NULL,
                                     content(messages, has_system), &first, &length, &user_at));
            assert_ok(fv_chat_follow("test.gguf", jinja, t, content(messages, 2u + has_system), &next, &length));
            /* mistral's models begin answers with a space by themselves */
            fv_text_printf(&all, "%s%s%s%s", first, mistral ? " " : "", content(messages, 1u + has_system), next);
            assert_string_equal(fv_text_get(&all), json_string_value(json_object_get(row, "text")));
            fv_text_free(&all);
            fv_free(first);
            fv_free(next);
            checked++;
        }
    }
    assert_int_equal(checked, 2 * sizeof known / sizeof *known);
    fv_tokenizer_free(t);
    json_decref(golden);
}

/* Whole conversations in one call. */
static void test_conversations_render_as_llama_cpp(void **state)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    json_t *golden = test_golden("templates"), *rows = json_object_get(golden, "templates"), *row;
    fv_tokenizer *t = tiny(true);
    size_t index, checked = 0;

    (void)state;
    json_array_foreach(rows, index, row)
    {
        json_t *messages = json_object_get(row, "messages");
        fv_chat_message message[8];
        size_t count = json_array_size(messages);
        assert_in_range(count, 1, 8);
        for (size_t i = 0; i < count; i++) {
            const char *role = json_string_value(json_object_get(json_array_get(messages, i), "role"));
            message[i].content = content(messages, i);
            for (int r = 0; r < 3; r++)
                if (strcmp(role, roles[r]) == 0) message[i].role = (fv_chat_role)r;
        }
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            char *text;
            size_t length;
            if (strcmp(known[k].golden, json_string_value(json_object_get(row, "template"))) != 0) continue;
            assert_ok(fv_chat_messages("test.gguf", words(known[k].jinja), t, message, (int64_t)count, &text, &length));
            assert_string_equal(text, json_string_value(json_object_get(row, "text")));
            assert_int_equal(length, strlen(text));
            fv_free(text);
            checked++;
        }
    }
    assert_int_equal(checked, 4 * sizeof known / sizeof *known);
    fv_tokenizer_free(t);
    json_decref(golden);
}

/* ---- rules ------------------------------------------------------------------------------------------------------ */

static void test_default_system_message_comes_from_the_template(void **state)
{
    fv_tokenizer *t = tiny(false);

    (void)state;
    check(t,
          "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + "
          "'<|im_end|>\\n' }}"
          "{%- else %}{{- '<|im_start|>system\\nIt\\'s \"me\".<|im_end|>\\n' }}{%- endif %}",
          NULL, "Hi",
          "<|im_start|>system\nIt's \"me\".<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    check(t, "{{ \"<|im_start|>system\\nD<|im_end|>\\n\" }}", "Mine", "Hi",
          "<|im_start|>system\nMine<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    check(t, "no literal: <|im_start|>system\nX<|im_end|>\n {{ '<|im_start|>", NULL, "Hi",
          "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    fv_tokenizer_free(t);
}

static void test_begin_token_is_written_once(void **state)
{
    static const char jinja[] = "{{ bos_token }}{{ '<start_of_turn>user\n' + message['content'] }}";
    fv_tokenizer *adds = tiny(true), *leaves = tiny(false);

    (void)state;
    check(adds, jinja, NULL, " Hi ", "<start_of_turn>user\n Hi <end_of_turn>\n<start_of_turn>model\n");
    check(leaves, jinja, NULL, " Hi ", "<s><start_of_turn>user\n Hi <end_of_turn>\n<start_of_turn>model\n");
    fv_tokenizer_free(adds);
    fv_tokenizer_free(leaves);
}

static void test_further_turns_begin_as_the_template_does(void **state)
{
    fv_tokenizer *t = tiny(true);
    char *text;
    size_t length;

    (void)state;
    assert_ok(fv_chat_follow("x.gguf", words("{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"), t, " Hi ",
                             &text, &length));
    assert_string_equal(text, "</s><s>[INST] Hi [/INST]");
    assert_int_equal(length, strlen(text));
    fv_free(text);
    assert_fails(fv_chat_follow("x.gguf", words("{{ x }}"), t, "Hi", &text, &length), FV_E_UNSUPPORTED, "with --raw");
    fv_tokenizer_free(t);
}

static void test_other_forms(void **state)
{
    fv_tokenizer *t = tiny(true);

    (void)state;
    check(t, "{{ '<|user|>\n' + message['content'] + eos_token }}{{ '<|assistant|>' }}", "Sys", "Hi",
          "<|system|>\nSys</s>\n<|user|>\nHi</s>\n<|assistant|>\n");
    check(t, "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}", "Sys", "Hi",
          "<|im_start|>system<|im_sep|>Sys<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_"
          "sep|>");
    check(t, "{{ '[AVAILABLE_TOOLS]' }}{{ \"[INST]\" + message['content'] + \"[/INST]\" }}", NULL, "Hi",
          "[INST]Hi[/INST]");
    check(t, "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}", NULL, "  Hi  ", "[INST] Hi [/INST]");
    check(t, "{{ '[INST] ' + message['content'] + ' [/INST]' }}", NULL, "", "[INST]  [/INST]");
    fv_tokenizer_free(t);
}

static void check_all(const fv_tokenizer *t, const char *jinja, const fv_chat_message *messages, int64_t count,
                      const char *expected)
{
    char *text;
    size_t length;

    assert_ok(fv_chat_messages("x.gguf", words(jinja), t, messages, count, &text, &length));
    assert_string_equal(text, expected);
    assert_int_equal(length, strlen(expected));
    fv_free(text);
}

static void test_turns_in_any_order(void **state)
{
    static const fv_chat_message tool[] = {{FV_CHAT_USER, "Q"}, {FV_CHAT_ASSISTANT, "A"}, {FV_CHAT_TOOL, "{1}"}};
    static const fv_chat_message late[] = {
        {FV_CHAT_USER, "Q"}, {FV_CHAT_SYSTEM, "S"}, {FV_CHAT_SYSTEM, "T"}, {FV_CHAT_ASSISTANT, "A"}};
    static const fv_chat_message twice[] = {{FV_CHAT_USER, "Q"}, {FV_CHAT_USER, "R"}};
    static const char chatml[] = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}";
    static const char gemma[] = "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}";
    fv_tokenizer *t = tiny(true);

    (void)state;
    check_all(t, chatml, tool, 3,
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>tool\n{1}<|im_end|>\n"
              "<|im_start|>assistant\n");
    check_all(t, "{{ '<|im_start|>user\n<tool_response>\n' }}", tool, 3,
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\n<tool_response>\n"
              "{1}\n</tool_response><|im_end|>\n<|im_start|>assistant\n");
    check_all(t, gemma, tool, 3,
              "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\n{1}"
              "<end_of_turn>\n<start_of_turn>model\n");
    check_all(t, chatml, late, 4,
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>system\nS<|im_end|>\n<|im_start|>system\nT<|im_end|>\n"
              "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>assistant\n");
    check_all(
        t, gemma, late, 4,
        "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>user\nS\n\nT\n\n<end_of_turn>\n<start_of_turn>model\n"
        "A<end_of_turn>\n<start_of_turn>model\n");
    check_all(t, gemma, late, 2,
              "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>user\nS\n\n<end_of_turn>\n<start_of_turn>model\n");
    check_all(t, chatml, twice, 2,
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n");
    check_all(t, chatml, twice, 0, "<|im_start|>assistant\n");
    fv_tokenizer_free(t);
}

static void test_unknown_templates_suggest_raw(void **state)
{
    static const char *const unknown[] = {"",     "{{ messages }}", "[SYSTEM_PROMPT][INST]",         "<|user|>",
                                          "\1\2", "{{ '",           "<|im_start|><end_of_utterance>"};
    fv_tokenizer *t = tiny(true);
    char *text;
    size_t length, user_at;

    (void)state;
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_fails(fv_chat_render("x.gguf", words(unknown[i]), t, NULL, "Hi", &text, &length, &user_at),
                     FV_E_UNSUPPORTED, "with --raw");
        assert_null(text);
    }
    fv_tokenizer_free(t);
}

static void test_failing_allocations_are_reported(void **state)
{
    fv_tokenizer *t = tiny(false);

    (void)state;
    for (int64_t nth = 1;; nth++) {
        char *text;
        size_t length, user_at;
        test_alloc_fail(nth);
        fv_status status = fv_chat_render("x.gguf", words("{{ '<|im_start|>system\nD<|im_end|>\n' }}"), t, NULL, "Hi",
                                          &text, &length, &user_at);
        int64_t made = test_alloc_count();
        test_alloc_fail(0);
        assert_int_equal(status, made >= nth ? FV_E_MEMORY : FV_OK);
        fv_free(text);
        if (made < nth) break;
    }
    fv_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_templates_render_as_llama_cpp),
        cmocka_unit_test(test_further_turns_render_as_llama_cpp),
        cmocka_unit_test(test_conversations_render_as_llama_cpp),
        cmocka_unit_test(test_turns_in_any_order),
        cmocka_unit_test(test_smollm2_renders_as_its_own_template),
        cmocka_unit_test(test_default_system_message_comes_from_the_template),
        cmocka_unit_test(test_begin_token_is_written_once),
        cmocka_unit_test(test_further_turns_begin_as_the_template_does),
        cmocka_unit_test(test_other_forms),
        cmocka_unit_test(test_unknown_templates_suggest_raw),
        cmocka_unit_test(test_failing_allocations_are_reported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

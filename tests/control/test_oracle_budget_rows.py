"""Rules 10 to 21 and admission as hand-made cases for the oracle: expected ids are written out, none is computed."""

import oracle_budget
import pytest
from oracle_budget import NeverEnds, Refused, simulate
from oracle_cases import (
    ANSWER,
    BEGINNINGS,
    CLOSE,
    COLON,
    DOT_NL,
    END,
    ENDS,
    EOD,
    EOT,
    FINAL,
    GT,
    HALF_1,
    HALF_2,
    HMM,
    LESS,
    LT,
    NL,
    NL1,
    NL2,
    S1,
    SOT,
    TAGS,
    THINK,
    THINK_WORD,
    WAIT,
    WAIT2,
    A,
    B,
    C,
    P,
    Q,
    X,
    expect,
    play,
    with_,
)
from oracle_matching import cut_at_stop, reopened


class TestRule10TheForbiddenDraw:
    def test_first_ids_and_ids_that_hold_a_whole_delimiter(self):
        row = with_(
            TAGS,
            token_bytes=TAGS.token_bytes + (b"a</think>b",),
            delimiters=(b"</think>", b"<eot>"),
            delimiter_first_ids=(CLOSE, LESS),
            kept_delimiter=(True, False),
            n_ignore=1,
        )
        result = play(row, [P, CLOSE, Q, CLOSE, END], forbidden={2: {END, CLOSE, LESS, 14}})
        expect(result, [P, Q, CLOSE, END], "....", 2, 3, 0, "natural", ignored=1)

    def test_not_at_the_first_token_and_not_after_a_closing(self):
        row = with_(S1, budget=1, n_ignore=1, strings=((WAIT,),))
        result = play(row, [EOT, X, X, X, X, X, X, EOT], forbidden={})
        expect(result, [WAIT, NL, SOT, ANSWER, NL, FINAL, COLON, EOT], "FFFFFFF.", 1, 7, 0, "budget", ignored=1)

    def test_beginnings_too_where_ids_were_taken_back(self):
        # `</`, `think`, `>` are not the usual ids of `</think>`: were `</` drawn again, all would come to the same
        # point again, for ever.
        row = with_(TAGS, minimum=2)
        draws = [LT, THINK_WORD, GT, P, LT, THINK_WORD, GT, Q, CLOSE, END]
        result = play(row, draws, forbidden={3: BEGINNINGS, 7: BEGINNINGS})
        expect(result, [P, Q, CLOSE, END], "....", 2, 3, 0, "natural", ignored=2)

    def test_a_row_that_takes_too_many_steps_is_an_error(self, monkeypatch):
        monkeypatch.setattr(oracle_budget, "STEP_LIMIT", 3)
        with pytest.raises(NeverEnds, match="3 ids kept, 0 ends ignored after 3 steps"):
            simulate(S1, lambda kept, forbidden: A)

    def test_with_a_string_they_do_and_the_budget_wins_over_the_minimum(self):
        row = with_(TAGS, minimum=4, budget=4, strings=((WAIT2, Q, Q),))
        result = play(row, [LT, THINK_WORD, GT, X, X, LT, X, X, X, END], forbidden={5: {END, CLOSE}})
        expect(result, [WAIT2, Q, Q, NL1, CLOSE, NL2, END], "FFFFFF.", 3, 6, 0, "budget", ignored=1)


class TestRule11AnEndAsFirstDraw:
    def test_natural_with_no_thinking(self):
        expect(play(S1, [SOT, X, EOT]), [SOT, ANSWER, EOT], "FF.", 0, 2, 0, "natural")

    def test_ignored_and_counted(self):
        row = with_(S1, n_ignore=1, strings=((WAIT,),))
        result = play(row, [SOT, A, SOT, X, EOT], forbidden={1: ENDS})
        expect(result, [WAIT, A, SOT, ANSWER, EOT], "F.FF.", 2, 4, 0, "natural", ignored=1)


class TestRule12EosAgainstDelimiter:
    def test_an_eos_is_replaced_by_the_answer_start(self):
        expect(play(S1, [A, EOD, X, B, EOT]), [A, SOT, ANSWER, B, EOT], ".FF..", 1, 3, 1, "natural")

    def test_also_where_the_delimiter_would_be_kept_and_a_half_before_it_stays(self):
        result = play(TAGS, [P, LT, END, X, X, Q, END])
        expect(result, [P, LT, NL1, CLOSE, NL2, Q, END], "..FFF..", 2, 5, 1, "natural")

    def test_an_ignored_eos(self):
        row = with_(S1, n_ignore=1, strings=((WAIT,),))
        result = play(row, [A, EOT, B, EOT, X, EOT], forbidden={2: ENDS})
        expect(result, [A, WAIT, B, SOT, ANSWER, EOT], ".F.FF.", 3, 5, 0, "natural", ignored=1)


class TestRule13Minimum:
    def test_injected_ids_count(self):
        row = with_(S1, minimum=3, strings=((WAIT, WAIT),))
        result = play(row, [SOT, X, A, SOT, X, EOT], forbidden={2: ENDS})
        expect(result, [WAIT, WAIT, A, SOT, ANSWER, EOT], "FF.FF.", 3, 5, 0, "natural", ignored=1)

    def test_the_ids_of_the_end_do_not(self):
        row = with_(TAGS, minimum=3)
        draws = [P, LT, THINK_WORD, GT, Q, P, CLOSE, END]
        result = play(row, draws, {4: BEGINNINGS})
        expect(result, [P, Q, P, CLOSE, END], ".....", 3, 4, 0, "natural", ignored=1)

    def test_a_loop_wins_over_it(self):
        row = with_(TAGS, budget=6, minimum=6, repetition=(1, 1, 2))
        result = play(row, [P, P, X, X, X, END])
        expect(result, [P, P, NL1, CLOSE, NL2, END], "..FFF.", 2, 5, 0, "loop")


class TestRule14SeveralStrings:
    def test_they_are_cycled(self):
        row = with_(S1, budget=20, n_ignore=3, strings=((WAIT,), (HMM, NL)))
        draws = [SOT, A, SOT, X, B, EOT, C, SOT, X, EOT]
        result = play(row, draws, forbidden={1: ENDS, 4: ENDS, 6: ENDS})
        ids = [WAIT, A, HMM, NL, B, WAIT, C, SOT, ANSWER, EOT]
        expect(result, ids, "F.FF.F.FF.", 7, 9, 0, "natural", ignored=3)


class TestRule15LoopDetector:
    LOOP = {"repetition": (2, 1, 3), "budget": 20}

    def test_end_thinking_closes_at_the_next_step(self):
        result = play(with_(S1, **self.LOOP), [B, A, A, A, X, X, X, X, X, X, EOT])
        ids = [B, A, A, A, NL, SOT, ANSWER, NL, FINAL, COLON, EOT]
        expect(result, ids, "....FFFFFF.", 4, 10, 0, "loop")

    def test_stop_ends_the_row(self):
        result = play(with_(S1, loop_action="stop", **self.LOOP), [A, B, A, B, A, B])
        expect(result, [A, B, A, B, A, B], "......", 6, 6, 0, "loop", finish="repetition")

    def test_report_only_says_where_it_was_seen_first(self):
        result = play(with_(S1, loop_action="report", **self.LOOP), [A, A, A, A, SOT, X, EOT])
        expect(result, [A, A, A, A, SOT, ANSWER, EOT], "....FF.", 4, 6, 0, "natural", loop_at=3)

    def test_our_own_strings_are_no_loop(self):
        row = with_(S1, n_ignore=3, strings=((WAIT,),), **self.LOOP)
        draws = [A, SOT, A, SOT, A, SOT, A, SOT, X, EOT]
        result = play(row, draws, forbidden={2: ENDS, 4: ENDS, 6: ENDS})
        ids = [A, WAIT, A, WAIT, A, WAIT, A, SOT, ANSWER, EOT]
        expect(result, ids, ".F.F.F.FF.", 7, 9, 0, "natural", ignored=3)

    def test_in_the_answer_it_always_ends_the_row_and_starts_fresh(self):
        row = with_(S1, loop_action="report", **self.LOOP)
        result = play(row, [A, A, SOT, X, A, A, A])
        expect(result, [A, A, SOT, ANSWER, A, A, A], "..FF...", 2, 4, 3, "natural", finish="repetition")

    def test_a_loop_and_the_budget_at_once_is_a_loop(self):
        result = play(with_(TAGS, budget=3, repetition=(1, 1, 3)), [P, P, P, X, X, X, END])
        expect(result, [P, P, P, NL1, CLOSE, NL2, END], "...FFF.", 3, 6, 0, "loop")


class TestRule16DelimitersInTheAnswer:
    def test_they_are_ordinary_ids(self):
        result = play(S1, [A, SOT, X, B, SOT, THINK, C, SOT, ANSWER, EOT])
        ids = [A, SOT, ANSWER, B, SOT, THINK, C, SOT, ANSWER, EOT]
        expect(result, ids, ".FF.......", 1, 3, 6, "natural")
        assert reopened(S1.token_bytes, result.token_ids, result.answer_offset, S1.delimiters)
        assert not reopened(S1.token_bytes, result.token_ids[:4], result.answer_offset, S1.delimiters)


class TestRule17Answer:
    def test_an_eos_at_once(self):
        expect(play(S1, [A, SOT, X, EOT]), [A, SOT, ANSWER, EOT], ".FF.", 1, 3, 0, "natural")

    def test_the_answer_budget(self):
        result = play(with_(S1, answer_budget=2), [A, SOT, X, B, C])
        expect(result, [A, SOT, ANSWER, B, C], ".FF..", 1, 3, 2, "natural", finish="length")

    def test_an_eos_as_last_id_within_the_answer_budget(self):
        result = play(with_(S1, answer_budget=2), [A, SOT, X, B, EOT])
        expect(result, [A, SOT, ANSWER, B, EOT], ".FF..", 1, 3, 1, "natural")

    def test_the_room(self):
        result = play(with_(S1, budget=1, max_new_tokens=8), [A, X, X, X, X, X, X, B])
        expect(result, [A, NL, SOT, ANSWER, NL, FINAL, COLON, B], ".FFFFFF.", 1, 7, 1, "budget", finish="length")

    def test_no_room_is_left_after_the_closing(self):
        result = play(with_(S1, budget=1, max_new_tokens=7), [A, X, X, X, X, X, X])
        expect(result, [A, NL, SOT, ANSWER, NL, FINAL, COLON], ".FFFFFF", 1, 7, 0, "budget", finish="length")


class TestRule18StopStrings:
    def test_across_ids_and_in_the_answer_only(self):
        result = play(S1, [A, B, SOT, X, C, A, B, B, EOT])
        ids = [A, B, SOT, ANSWER, C, A, B, B, EOT]
        expect(result, ids, "..FF.....", 2, 4, 4, "natural")
        cut = cut_at_stop(S1.token_bytes, result.token_ids, result.answer_offset, (b"ab", b"zz"))
        assert cut == ((A, B, SOT, ANSWER, C, A, B), b"c")
        assert cut_at_stop(S1.token_bytes, result.token_ids, result.answer_offset, (b"ba",)) is None


class TestRule19SeveralSamples:
    def test_each_row_is_its_own(self):
        row = with_(S1, n_ignore=1, strings=((WAIT,),))
        one = play(row, [SOT, A, SOT, X, EOT], forbidden={1: ENDS})
        two = play(row, [B, B, EOT, B, EOT, X, A, EOT], forbidden={3: ENDS})
        expect(one, [WAIT, A, SOT, ANSWER, EOT], "F.FF.", 2, 4, 0, "natural", ignored=1)
        expect(two, [B, B, WAIT, B, SOT, ANSWER, A, EOT], "..F.FF..", 4, 6, 1, "natural", ignored=1)


class TestRule20ACutInsideACharacter:
    def test_the_ids_are_exact_and_the_text_has_a_replacement(self):
        result = play(with_(S1, budget=2), [A, HALF_1, X, X, X, X, X, X, HALF_2, EOT])
        ids = [A, HALF_1, NL, SOT, ANSWER, NL, FINAL, COLON, HALF_2, EOT]
        expect(result, ids, "..FFFFFF..", 2, 8, 1, "budget")
        assert b"".join(S1.token_bytes[i] for i in ids[:2]).decode(errors="replace") == "a\N{REPLACEMENT CHARACTER}"


class TestRule21Harness:
    ROW = with_(S1, mode="harness", budget=3, strings=((WAIT,),))

    def test_every_round_has_the_whole_budget_and_the_cut_leaves_the_first_ids(self):
        draws = [A, B, SOT, B, C, C, X, X, X, X, X, X, EOT]
        result = play(with_(self.ROW, n_ignore=1), draws, forbidden={0: ENDS, 3: ENDS})
        ids = [A, B, WAIT, NL, SOT, ANSWER, NL, FINAL, COLON, EOT]
        expect(result, ids, "..FFFFFFF.", 3, 9, 0, "budget", ignored=1)

    def test_a_last_round_that_ended_by_itself_has_no_newline_after_the_cut(self):
        draws = [A, B, SOT, B, C, SOT, X, EOT]
        result = play(with_(self.ROW, n_ignore=1), draws, forbidden={0: ENDS, 3: ENDS})
        expect(result, [A, B, WAIT, SOT, ANSWER, EOT], "..FFF.", 3, 5, 0, "natural", ignored=1)

    def test_the_newline_is_decided_before_the_cut(self):
        draws = [A, B, SOT, B, C, DOT_NL, X, X, X, X, X, EOT]
        result = play(with_(self.ROW, n_ignore=1), draws, forbidden={0: ENDS, 3: ENDS})
        ids = [A, B, WAIT, SOT, ANSWER, NL, FINAL, COLON, EOT]
        expect(result, ids, "..FFFFFF.", 3, 8, 0, "budget", ignored=1)

    def test_a_round_that_ends_by_length_is_the_last(self):
        draws = [A, B, C, X, X, X, X, X, X, EOT]
        result = play(with_(self.ROW, n_ignore=4), draws, forbidden={0: ENDS})
        expect(result, [A, B, C, NL, SOT, ANSWER, NL, FINAL, COLON, EOT], "...FFFFFF.", 3, 9, 0, "budget")

    def test_without_a_string(self):
        draws = [A, SOT, B, SOT, X, EOT]
        result = play(with_(self.ROW, n_ignore=1, strings=()), draws, forbidden={0: ENDS, 2: ENDS})
        expect(result, [A, B, SOT, ANSWER, EOT], "..FF.", 2, 4, 0, "natural", ignored=1)

    def test_an_eos_that_upstream_does_not_strip_stays_and_has_its_own_step(self):
        row = with_(self.ROW, n_ignore=1, unstripped_eos_ids=frozenset({EOD}), budget=5)
        draws = [A, EOD, X, B, EOD, X, X, EOT]
        result = play(row, draws, forbidden={0: ENDS, 3: ENDS})
        expect(result, [A, EOD, WAIT, B, EOD, SOT, ANSWER, EOT], "..F..FF.", 5, 7, 0, "natural", ignored=1)


class TestReadme:
    ROW = with_(S1, mode="readme", budget=4, n_ignore=2, strings=((WAIT,),))

    def test_ends_count_and_strings_do_not(self):
        # 2 of 4 drawn, then 2 more: the end that used the last one leaves no third round and no second string.
        result = play(self.ROW, [A, SOT, B, SOT, SOT, ANSWER, EOT], forbidden={2: ENDS})
        expect(result, [A, WAIT, B, SOT, ANSWER, EOT], ".F....", 3, 3, 2, "natural", ignored=1)

    def test_the_first_draw_may_be_an_end(self):
        result = play(self.ROW, [EOT, A, B, C, A, EOT], forbidden={1: ENDS})
        expect(result, [WAIT, A, B, C, A, EOT], "F.....", 4, 4, 1, "budget", ignored=1)

    def test_a_length_end_has_no_header(self):
        expect(play(self.ROW, [A, B, C, A, B, EOT]), [A, B, C, A, B, EOT], "......", 4, 4, 1, "budget")


class TestAdmission:
    def test_no_budget_is_the_capacity_and_its_reason_is_length(self):
        # room 9 - (newline 1 + forced end 5) - answer 1 = 2
        for budget in (None, -1):
            row = with_(S1, budget=budget, max_new_tokens=9, answer_budget=1)
            result = play(row, [A, B, X, X, X, X, X, X, C])
            ids = [A, B, NL, SOT, ANSWER, NL, FINAL, COLON, C]
            expect(result, ids, "..FFFFFF.", 2, 8, 1, "length", finish="length")

    def test_a_long_answer_start_is_reserved_too(self):
        row = with_(TAGS, max_new_tokens=4, forced_end=(CLOSE,), budget=None)
        result = play(row, [END, X, X, END])
        expect(result, [NL1, CLOSE, NL2, END], "FFF.", 0, 3, 0, "natural")

    @pytest.mark.parametrize(
        "changes",
        [
            {"budget": 3, "max_new_tokens": 8},
            {"budget": 3, "max_new_tokens": 9, "answer_budget": 1},
            {"budget": None, "max_length": 15},
            {"minimum": 7},
            {"budget": True},
            {"budget": 3.0},
            {"budget": -2},
            {"answer_budget": 0},
            {"mode": "harness", "budget": 4, "n_ignore": 1, "max_new_tokens": 13},
            {"mode": "harness", "budget": 4, "n_ignore": 1, "strings": ((WAIT,),), "max_new_tokens": 14},
            {"mode": "harness", "minimum": 1},
            {"mode": "readme", "minimum": 1},
            {"mode": "s1jax", "unstripped_eos_ids": frozenset({EOD})},
        ],
    )
    def test_what_cannot_fit_is_refused(self, changes):
        with pytest.raises(Refused):
            play(with_(S1, **changes), [])


@pytest.mark.parametrize("drawn", [SOT, len(S1.token_bytes), -1])
def test_a_model_that_draws_what_it_must_not_is_an_error_of_the_test(drawn):
    row = with_(S1, mode="harness")
    with pytest.raises(ValueError, match="forbidden or not in the vocabulary"):
        simulate(row, lambda kept, forbidden: drawn)

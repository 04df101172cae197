"""Rules 0 to 9 of budget forcing as hand-made cases for the oracle: expected ids are written out, none is computed."""

import pytest
from oracle_budget import Refused
from oracle_cases import (
    ANSWER,
    BEGINNINGS,
    CLOSE,
    COLON,
    DOT_LT,
    DOT_NL,
    END,
    ENDS,
    EOT,
    FINAL,
    GT,
    GT_NL,
    HMM,
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


class TestRule0WhatIsAnEnd:
    def test_an_id_with_bytes_after_the_delimiter_ends_it(self):
        result = play(TAGS, [P, LT, THINK_WORD, GT_NL, Q, END])
        expect(result, [P, LT, THINK_WORD, GT_NL, Q, END], "......", 1, 4, 1, "natural")

    def test_an_id_with_bytes_before_the_delimiter_belongs_to_it_wholly(self):
        result = play(TAGS, [P, DOT_LT, THINK_WORD, GT, Q, END])
        expect(result, [P, DOT_LT, THINK_WORD, GT, Q, END], "......", 1, 4, 1, "natural")

    def test_bytes_after_an_ignored_end_are_dropped(self):
        row = with_(TAGS, n_ignore=1, strings=((WAIT2,),))
        result = play(row, [P, LT, THINK_WORD, GT_NL, Q, CLOSE, END], forbidden={4: {END, CLOSE}})
        expect(result, [P, WAIT2, Q, CLOSE, END], ".F...", 3, 4, 0, "natural", ignored=1)

    def test_matching_restarts_at_an_injection(self):
        row = with_(TAGS, budget=8, n_ignore=1, strings=((WAIT2, LT),))
        draws = [P, CLOSE, X, THINK_WORD, GT, Q, CLOSE, END]
        result = play(row, draws, forbidden={3: {END, CLOSE}})
        ids = [P, WAIT2, LT, THINK_WORD, GT, Q, CLOSE, END]
        expect(result, ids, ".FF.....", 6, 7, 0, "natural", ignored=1)

    def test_without_an_injection_matching_goes_on_over_what_is_kept(self):
        row = with_(TAGS, n_ignore=1)
        result = play(row, [P, LT, END, THINK_WORD, GT, END], forbidden={3: {END, CLOSE}})
        expect(result, [P, LT, THINK_WORD, GT, END], ".....", 1, 4, 0, "natural", ignored=1)

    def test_the_prompt_is_not_looked_into(self):
        # A prompt that ends in `</` changes nothing: the row does not even know its text.
        result = play(with_(TAGS, budget=3), [THINK_WORD, GT, P, X, X, X, END])
        expect(result, [THINK_WORD, GT, P, NL1, CLOSE, NL2, END], "...FFF.", 3, 6, 0, "budget")

    def test_the_longest_delimiter_counts(self):
        row = with_(TAGS, delimiters=(b">", b"</think>"), delimiter_first_ids=(GT, CLOSE), kept_delimiter=(True, True))
        result = play(row, [P, LT, THINK_WORD, GT, END])
        expect(result, [P, LT, THINK_WORD, GT, END], ".....", 1, 4, 0, "natural")

    def test_of_two_ends_in_one_id_the_first_counts(self):
        row = with_(TAGS, delimiters=(b"ab",), token_bytes=TAGS.token_bytes + (b"bab",))
        result = play(row, [Q, P, 14, END])
        expect(result, [Q, P, 14, END], "....", 1, 3, 0, "natural")


class TestRule1BudgetZero:
    def test_only_the_closing(self):
        row = with_(S1, budget=0, n_ignore=3, strings=((WAIT,),))
        result = play(row, [X, X, X, X, X, X, A, EOT])
        expect(result, [NL, SOT, ANSWER, NL, FINAL, COLON, A, EOT], "FFFFFF..", 0, 6, 1, "budget")


class TestRule2NoThinking:
    def test_everything_is_answer(self):
        result = play(with_(S1, thinking=False, budget=None), [A, SOT, THINK, EOT])
        expect(result, [A, SOT, THINK, EOT], "....", 0, 0, 3, None)

    def test_the_room_bounds_it(self):
        result = play(with_(S1, thinking=False, budget=None, max_new_tokens=2), [A, A])
        expect(result, [A, A], "..", 0, 0, 2, None, finish="length")

    @pytest.mark.parametrize("changes", [{"budget": 5}, {"minimum": 1}, {"n_ignore": 1}, {"max_length": 10}])
    def test_what_has_no_meaning_is_refused(self, changes):
        with pytest.raises(Refused):
            play(with_(S1, **({"thinking": False, "budget": None} | changes)), [])


class TestRule3BudgetOne:
    def test_an_end_as_the_only_draw(self):
        result = play(with_(S1, budget=1), [SOT, X, EOT])
        expect(result, [SOT, ANSWER, EOT], "FF.", 0, 2, 0, "natural")

    def test_any_other_draw_is_kept_and_closed(self):
        result = play(with_(S1, budget=1), [A, X, X, X, X, X, X, EOT])
        expect(result, [A, NL, SOT, ANSWER, NL, FINAL, COLON, EOT], ".FFFFFF.", 1, 7, 0, "budget")

    def test_an_ignored_end_and_a_string_that_fits_exactly(self):
        result = play(with_(S1, budget=1, n_ignore=1, strings=((WAIT,),)), [SOT, X, X, X, X, X, X, EOT])
        expect(result, [WAIT, NL, SOT, ANSWER, NL, FINAL, COLON, EOT], "FFFFFFF.", 1, 7, 0, "budget", ignored=1)


class TestRule4TheBudgetIsReached:
    def test_an_end_at_the_next_draw_is_not_looked_at(self):
        result = play(with_(S1, budget=2), [A, B, SOT, X, X, X, X, X, C, EOT])
        expect(result, [A, B, NL, SOT, ANSWER, NL, FINAL, COLON, C, EOT], "..FFFFFF..", 2, 8, 1, "budget")

    def test_no_newline_after_an_id_that_ends_in_one(self):
        result = play(with_(S1, budget=2), [A, DOT_NL, X, X, X, X, X, EOT])
        expect(result, [A, DOT_NL, SOT, ANSWER, NL, FINAL, COLON, EOT], "..FFFFF.", 2, 7, 0, "budget")

    def test_an_end_at_the_last_draw_within_the_budget_is_natural(self):
        result = play(with_(S1, budget=2), [A, SOT, X, EOT])
        expect(result, [A, SOT, ANSWER, EOT], ".FF.", 1, 3, 0, "natural")


class TestRule5HalfADelimiter:
    def test_the_half_is_rewound_with_the_id_that_only_ends_in_it(self):
        result = play(with_(TAGS, budget=3), [P, DOT_LT, THINK_WORD, X, X, X, END])
        expect(result, [P, NL1, CLOSE, NL2, END], ".FFF.", 1, 4, 0, "budget")

    def test_the_newline_looks_at_what_is_left(self):
        result = play(with_(TAGS, budget=2), [NL1, LT, X, X, END])
        expect(result, [NL1, CLOSE, NL2, END], ".FF.", 1, 3, 0, "budget")

    def test_nothing_is_left(self):
        result = play(with_(TAGS, budget=2), [LT, THINK_WORD, X, X, X, END])
        expect(result, [NL1, CLOSE, NL2, END], "FFF.", 0, 3, 0, "budget")


class TestRule6ANaturalEnd:
    def test_a_delimiter_that_the_answer_start_repeats_is_replaced(self):
        result = play(S1, [A, DOT_NL, SOT, X, B, EOT])
        expect(result, [A, DOT_NL, SOT, ANSWER, B, EOT], "..FF..", 2, 4, 1, "natural")

    def test_a_delimiter_that_stands_for_itself_is_kept(self):
        result = play(TAGS, [P, CLOSE, Q, END])
        expect(result, [P, CLOSE, Q, END], "....", 1, 2, 1, "natural")

    def test_exactly_the_minimum(self):
        result = play(with_(S1, minimum=1), [A, SOT, X, EOT])
        expect(result, [A, SOT, ANSWER, EOT], ".FF.", 1, 3, 0, "natural")


class TestRule7AnIgnoredEnd:
    def test_the_string_stands_in_its_place_and_counts(self):
        row = with_(S1, budget=5, n_ignore=1, strings=((WAIT, A),))
        result = play(row, [B, SOT, X, C, SOT, X, EOT], forbidden={3: ENDS})
        expect(result, [B, WAIT, A, C, SOT, ANSWER, EOT], ".FF.FF.", 4, 6, 0, "natural", ignored=1)

    def test_the_earlier_ids_of_the_end_are_rewound(self):
        row = with_(TAGS, n_ignore=1, strings=((WAIT2,),))
        draws = [P, LT, THINK_WORD, GT, Q, CLOSE, END]
        expect(play(row, draws, {4: {END, CLOSE}}), [P, WAIT2, Q, CLOSE, END], ".F...", 3, 4, 0, "natural", ignored=1)

    def test_the_minimum_ignores_more_than_n_and_shares_its_count(self):
        row = with_(S1, minimum=4, n_ignore=1, strings=((WAIT,), (HMM,)))
        result = play(row, [SOT, A, EOT, B, SOT, X, EOT], forbidden={1: ENDS, 3: ENDS})
        expect(result, [WAIT, A, HMM, B, SOT, ANSWER, EOT], "F.F.FF.", 4, 6, 0, "natural", ignored=2)


class TestRule8AStringThatDoesNotFit:
    def test_it_is_a_natural_end(self):
        row = with_(S1, budget=3, n_ignore=2, strings=((WAIT, WAIT),))
        result = play(row, [A, B, SOT, X, EOT])
        expect(result, [A, B, SOT, ANSWER, EOT], "..FF.", 2, 4, 0, "natural")

    def test_below_the_minimum_the_end_is_dropped_without_a_string(self):
        row = with_(S1, budget=3, minimum=3, strings=((WAIT, WAIT),))
        draws = [A, B, SOT, C, X, X, X, X, X, X, EOT]
        ids = [A, B, C, NL, SOT, ANSWER, NL, FINAL, COLON, EOT]
        expect(play(row, draws, forbidden={3: ENDS}), ids, "...FFFFFF.", 3, 9, 0, "budget", ignored=1)

    def test_one_that_fits_exactly_is_put_and_closed(self):
        row = with_(S1, budget=3, n_ignore=2, strings=((WAIT, WAIT),))
        ids = [A, WAIT, WAIT, NL, SOT, ANSWER, NL, FINAL, COLON, EOT]
        expect(play(row, [A, SOT] + [X] * 7 + [EOT]), ids, ".FFFFFFFF.", 3, 9, 0, "budget", ignored=1)

    def test_the_earlier_ids_make_room(self):
        row = with_(TAGS, budget=4, n_ignore=1, strings=((WAIT2, Q),))
        draws = [P, LT, THINK_WORD, GT, X, P, X, X, X, END]
        ids = [P, WAIT2, Q, P, NL1, CLOSE, NL2, END]
        expect(play(row, draws, {5: {END, CLOSE}}), ids, ".FF.FFF.", 4, 7, 0, "budget", ignored=1)


class TestRule9NoString:
    def test_the_end_vanishes_and_its_step_emits_nothing(self):
        result = play(with_(S1, n_ignore=1), [A, SOT, B, SOT, X, EOT], forbidden={2: ENDS})
        expect(result, [A, B, SOT, ANSWER, EOT], "..FF.", 2, 4, 0, "natural", ignored=1)

    def test_an_empty_string_is_none(self):
        result = play(with_(S1, n_ignore=1, strings=((),)), [SOT, B, SOT, X, EOT], forbidden={1: ENDS})
        expect(result, [B, SOT, ANSWER, EOT], ".FF.", 1, 3, 0, "natural", ignored=1)

    def test_a_forced_last_id_keeps_its_mark(self):
        row = with_(S1, n_ignore=2, strings=((WAIT,), ()))
        result = play(row, [SOT, A, SOT, B, EOT, X, EOT], forbidden={1: ENDS, 3: ENDS})
        expect(result, [WAIT, A, B, SOT, ANSWER, EOT], "F..FF.", 3, 5, 0, "natural", ignored=2)

    def test_earlier_ids_are_rewound(self):
        result = play(with_(TAGS, n_ignore=1), [P, LT, THINK_WORD, GT, Q, END, X, X, END], {4: BEGINNINGS})
        expect(result, [P, Q, NL1, CLOSE, NL2, END], "..FFF.", 2, 5, 0, "natural", ignored=1)
